// Files on Windows.
#ifdef _WIN32

#include <algorithm>
#include <system_error>

#include "base/error.h"
#include "base/file/file.h"
#include "base/windows_api.h"

namespace sol_rt {
namespace {

[[noreturn]] void Throw(DWORD code) { throw std::system_error(static_cast<int>(code), std::system_category()); }

int64_t Nanoseconds(FILETIME time) { return static_cast<int64_t>(uint64_t{time.dwHighDateTime} << 32 | time.dwLowDateTime) * 100; }

HANDLE Open(const std::string& path, DWORD access, DWORD flags) {
  return CreateFileW(SystemPath(path).c_str(), access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING, flags, nullptr);
}

FileState StateOfHandle(HANDLE handle) {
  BY_HANDLE_FILE_INFORMATION info;
  if (!GetFileInformationByHandle(handle, &info)) Throw(GetLastError());
  FileState state;
  state.device = info.dwVolumeSerialNumber;
  state.inode = uint64_t{info.nFileIndexHigh} << 32 | info.nFileIndexLow;
  state.size = static_cast<int64_t>(uint64_t{info.nFileSizeHigh} << 32 | info.nFileSizeLow);
  state.modified = Nanoseconds(info.ftLastWriteTime);
  state.changed = Nanoseconds(info.ftCreationTime);
  return state;
}

}  // namespace

std::wstring SystemPath(const std::string& path) {
  const int size = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), static_cast<int>(path.size()), nullptr, 0);
  if (size == 0 && !path.empty()) UsageFault("a path: got text that is not UTF-8, expected UTF-8");
  std::wstring wide(static_cast<size_t>(size), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.data(), static_cast<int>(path.size()), wide.data(), size);
  return wide;
}

FileKind KindOf(const std::string& path) {
  const DWORD attributes = GetFileAttributesW(SystemPath(path).c_str());
  if (attributes == INVALID_FILE_ATTRIBUTES) return FileKind::kNone;
  return attributes & FILE_ATTRIBUTE_DIRECTORY ? FileKind::kFolder : FileKind::kFile;
}

bool IsLink(const std::string& path) {
  WIN32_FIND_DATAW found;
  const HANDLE search = FindFirstFileW(SystemPath(path).c_str(), &found);
  if (search == INVALID_HANDLE_VALUE) return false;
  FindClose(search);
  const DWORD tag = found.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT ? found.dwReserved0 : 0;
  return tag == IO_REPARSE_TAG_SYMLINK || tag == IO_REPARSE_TAG_MOUNT_POINT;  // others are files, such as those of Data Deduplication
}

FileState StateOf(const std::string& path) {
  const HANDLE handle = Open(path, FILE_READ_ATTRIBUTES, FILE_FLAG_BACKUP_SEMANTICS);
  if (handle == INVALID_HANDLE_VALUE) Throw(GetLastError());
  try {
    const FileState state = StateOfHandle(handle);
    CloseHandle(handle);
    return state;
  } catch (...) {
    CloseHandle(handle);
    throw;
  }
}

OpenFile::OpenFile(const std::string& path) : handle_(Open(path, GENERIC_READ, FILE_ATTRIBUTE_NORMAL)) {
  if (handle_ == INVALID_HANDLE_VALUE) Throw(GetLastError());
}

OpenFile::~OpenFile() {
  if (mapped_ != nullptr) UnmapViewOfFile(mapped_);
  if (mapping_ != nullptr) CloseHandle(mapping_);
  CloseHandle(handle_);
}

FileState OpenFile::State() const { return StateOfHandle(handle_); }

size_t OpenFile::Read(void* buffer, size_t size) {
  DWORD got = 0;
  if (!::ReadFile(handle_, buffer, static_cast<DWORD>(std::min(size, size_t{1} << 30)), &got, nullptr)) Throw(GetLastError());
  return got;
}

const uint8_t* OpenFile::Map(size_t size) {
  mapping_ = CreateFileMappingW(handle_, nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping_ == nullptr) Throw(GetLastError());
  mapped_ = static_cast<const uint8_t*>(MapViewOfFile(mapping_, FILE_MAP_READ, 0, 0, size));
  if (mapped_ == nullptr) Throw(GetLastError());
  mapped_size_ = size;
  return mapped_;
}

}  // namespace sol_rt

#endif
