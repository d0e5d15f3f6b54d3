// Files on POSIX systems.
#ifndef _WIN32

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "base/file/file.h"

namespace sol_rt {
namespace {

[[noreturn]] void Throw(int code) { throw std::system_error(code, std::generic_category()); }

FileState Convert(const struct stat& status) {
  FileState state;
  state.device = static_cast<uint64_t>(status.st_dev);
  state.inode = static_cast<uint64_t>(status.st_ino);
  state.size = static_cast<int64_t>(status.st_size);
#ifdef __APPLE__
  state.modified = int64_t{status.st_mtimespec.tv_sec} * 1000000000 + status.st_mtimespec.tv_nsec;
  state.changed = int64_t{status.st_ctimespec.tv_sec} * 1000000000 + status.st_ctimespec.tv_nsec;
#else
  state.modified = int64_t{status.st_mtim.tv_sec} * 1000000000 + status.st_mtim.tv_nsec;
  state.changed = int64_t{status.st_ctim.tv_sec} * 1000000000 + status.st_ctim.tv_nsec;
#endif
  return state;
}

}  // namespace

FileKind KindOf(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return FileKind::kNone;
  return S_ISREG(status.st_mode) ? FileKind::kFile : S_ISDIR(status.st_mode) ? FileKind::kFolder : FileKind::kOther;
}

bool IsLink(const std::string& path) {
  struct stat status;
  return lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
}

FileState StateOf(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) Throw(errno);
  return Convert(status);
}

OpenFile::OpenFile(const std::string& path) : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) Throw(errno);
  struct stat status;
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {  // a pipe would wait for its writer
    const int code = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    close(descriptor_);
    Throw(code);
  }
}

OpenFile::~OpenFile() {
  if (mapped_ != nullptr) munmap(const_cast<uint8_t*>(mapped_), mapped_size_);
  close(descriptor_);
}

FileState OpenFile::State() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) Throw(errno);
  return Convert(status);
}

size_t OpenFile::Read(void* buffer, size_t size) {
  for (;;) {
    const ssize_t got = read(descriptor_, buffer, std::min(size, size_t{1} << 30));
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) Throw(errno);
  }
}

const uint8_t* OpenFile::Map(size_t size) {
  void* const mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (mapped == MAP_FAILED) Throw(errno);
  mapped_ = static_cast<const uint8_t*>(mapped);
  mapped_size_ = size;
  return mapped_;
}

}  // namespace sol_rt

#endif
