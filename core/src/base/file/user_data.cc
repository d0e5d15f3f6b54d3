#include "base/file/user_data.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "base/error.h"
#include "base/file/file.h"

namespace sol_rt {

namespace fs = std::filesystem;

std::string EnvironmentText(const char* name) {
#ifdef _WIN32
  const wchar_t* const value = _wgetenv(SystemPath(name).c_str());
  return value == nullptr ? "" : fs::path(value).u8string();
#else
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
#endif
}

namespace {

// A folder below that of a variable; empty where that is not set.
std::string Below(const char* name, const std::string& path) {
  const std::string folder = EnvironmentText(name);
  return folder.empty() ? "" : JoinPath(folder, path);
}

}  // namespace

std::string UserDataFolder() {
  if (const std::string chosen = EnvironmentText("SOL_RT_HOME"); !chosen.empty()) return chosen;
#if defined(_WIN32)
  return Below("LOCALAPPDATA", "sol_rt");
#elif defined(__APPLE__)
  return Below("HOME", "Library/Application Support/sol_rt");
#else
  const std::string data = Below("XDG_DATA_HOME", "sol_rt");
  return data.empty() ? Below("HOME", ".local/share/sol_rt") : data;
#endif
}

void MakeFolders(const std::string& folder) {
  std::error_code error;
  fs::create_directories(SystemPath(folder), error);
  if (error) throw Error(SOL_ERROR_WRITE, folder + ": cannot be made (" + error.message() + "); make it writable, or set SOL_RT_HOME to another folder");
}

std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(SystemPath(folder), error); !error && entry != fs::directory_iterator(); entry.increment(error)) {
    names.push_back(entry->path().filename().u8string());
  }
  return names;
}

}  // namespace sol_rt
