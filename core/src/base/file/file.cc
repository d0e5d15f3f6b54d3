#include "base/file/file.h"

#include <algorithm>
#include <memory>
#include <system_error>

#include "base/error.h"
#include "base/sha256.h"

namespace sol_rt {

std::string JoinPath(const std::string& folder, const std::string& name) {
  std::string path = folder;
#ifdef _WIN32
  const bool ends = !path.empty() && (path.back() == '/' || path.back() == '\\');
#else
  const bool ends = !path.empty() && path.back() == '/';
#endif
  if (!ends && !path.empty()) path += '/';
  return path + name;
}

std::string ReadFile(const std::string& path, uint64_t most, const std::string& expected, const std::string& hint) {
  try {
    OpenFile file(path);
    const int64_t size = file.State().size;
    if (static_cast<uint64_t>(size) > most) {
      BundleFault(path, "", std::to_string(size) + " bytes", "at most " + std::to_string(most) + " bytes", hint);
    }
    std::string content(static_cast<size_t>(size), '\0');
    size_t done = 0;
    while (done < content.size()) {
      const size_t read = file.Read(&content[done], content.size() - done);
      if (read == 0) break;
      done += read;
    }
    content.resize(done);
    return content;
  } catch (const std::system_error& error) {
    BundleFault(path, "", Reason(error), expected, hint);
  }
}

std::string Sha256OfFile(const std::string& path, const std::function<void(uint64_t)>& progress) {
  constexpr size_t kChunk = 1 << 20;
  try {
    OpenFile file(path);
    Sha256 sha;
    const auto chunk = std::make_unique<uint8_t[]>(kChunk);
    uint64_t done = 0;
    while (const size_t read = file.Read(chunk.get(), kChunk)) {
      sha.Update(chunk.get(), read);
      done += read;
      if (progress) progress(done);
    }
    return sha.Hex();
  } catch (const std::system_error& error) {
    BundleFault(path, "", Reason(error), "a readable file");
  }
}

std::string Reason(const std::exception& error) {
  const auto* system = dynamic_cast<const std::system_error*>(&error);
  return system == nullptr ? error.what() : system->code().message();
}

}  // namespace sol_rt
