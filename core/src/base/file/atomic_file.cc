#include "base/file/atomic_file.h"

#include <cerrno>
#include <cstring>
#include <random>
#include <streambuf>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/file/file.h"
#include "base/file/without_signals.h"
#include "base/windows_api.h"

#ifndef _WIN32
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace sol_rt {
namespace {

constexpr const char* kTemporary = ".sol-tmp";
constexpr size_t kNameLength = 40;  // bytes of the target's name that a temporary name repeats; names have at most 255

std::string Folder(const std::string& path) {
#ifdef _WIN32
  const size_t at = path.find_last_of("/\\");
#else
  const size_t at = path.rfind('/');
#endif
  return at == std::string::npos ? "." : at == 0 ? "/" : path.substr(0, at);
}

std::string Name(const std::string& path) {
#ifdef _WIN32
  const size_t at = path.find_last_of("/\\");
#else
  const size_t at = path.rfind('/');
#endif
  return at == std::string::npos ? path : path.substr(at + 1);
}

// The name is random: in a container every process may have the number 1.
std::string TemporaryName(const std::string& target) {
  std::random_device random;
  std::string unique;
  for (int i = 0; i < 20; ++i) unique += "0123456789abcdef"[random() & 15];
  std::string name = Name(target);
  if (name.size() > kNameLength) {
    size_t size = kNameLength;
    while (size > 0 && (static_cast<unsigned char>(name[size]) & 0xC0) == 0x80) --size;
    name.resize(size);
  }
  return JoinPath(Folder(target), "." + name + "." + unique + kTemporary);
}

#ifdef _WIN32
int LastError() { return std::system_category().default_error_condition(static_cast<int>(GetLastError())).value(); }
#else
bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Removes temporary files that a killed process has left. Those in use are locked, and stay.
void RemoveAbandoned(const std::string& folder) {
  DIR* const entries = opendir(folder.c_str());
  if (entries == nullptr) return;
  while (const dirent* entry = readdir(entries)) {
    const std::string name = entry->d_name;
    if (name[0] != '.' || !EndsWith(name, kTemporary)) continue;
    const std::string path = JoinPath(folder, name);
    struct stat status;
    if (lstat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    const int descriptor = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0) continue;
    if (flock(descriptor, LOCK_EX | LOCK_NB) == 0) unlink(path.c_str());
    close(descriptor);
  }
  closedir(entries);
}

std::string RealPath(const std::string& path) {
  char* const real = realpath(path.c_str(), nullptr);
  if (real == nullptr) return path;
  std::string made(real);
  free(real);
  return made;
}
#endif

}  // namespace

// The open temporary file behind a stream.
class AtomicFile::Buffer : public std::streambuf {
 public:
#ifdef _WIN32
  explicit Buffer(const std::string& path)
      : handle_(CreateFileW(SystemPath(path).c_str(), GENERIC_WRITE, FILE_SHARE_READ, nullptr, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, nullptr)) {
    if (handle_ == INVALID_HANDLE_VALUE) error_ = LastError();
#else
  Buffer(const std::string& path, int flags) : descriptor_(open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK | flags, 0666)) {
    if (descriptor_ < 0) error_ = errno;  // also for a pipe that nobody reads
    else fcntl(descriptor_, F_SETFL, 0);
#endif
    setp(space_.data(), space_.data() + space_.size());
  }
  ~Buffer() override { Close(); }

  int error() const { return error_; }  // of the first call that failed; 0 if none did
  void Flush() {
    sync();
#ifdef _WIN32
    if (error_ == 0 && !FlushFileBuffers(handle_)) error_ = LastError();
#else
    if (error_ == 0 && fsync(descriptor_) != 0 && errno != EINVAL && errno != EROFS) error_ = errno;  // a device or pipe has nothing to flush
#endif
  }
  void Close() {
#ifdef _WIN32
    if (handle_ != INVALID_HANDLE_VALUE && !CloseHandle(handle_) && error_ == 0) error_ = LastError();
    handle_ = INVALID_HANDLE_VALUE;
#else
    if (descriptor_ >= 0 && close(descriptor_) != 0 && error_ == 0) error_ = errno;
    descriptor_ = -1;
#endif
  }
#ifndef _WIN32
  int descriptor() const { return descriptor_; }
#endif

 protected:
  int_type overflow(int_type next) override {
    if (sync() != 0) return traits_type::eof();
    if (!traits_type::eq_int_type(next, traits_type::eof())) {
      *pptr() = traits_type::to_char_type(next);
      pbump(1);
    }
    return traits_type::not_eof(next);
  }
  std::streamsize xsputn(const char* data, std::streamsize size) override {
    if (size < static_cast<std::streamsize>(space_.size())) return std::streambuf::xsputn(data, size);
    if (sync() != 0) return 0;
    return WriteOut(data, static_cast<size_t>(size)) ? size : 0;
  }
  int sync() override {
    const bool written = WriteOut(pbase(), static_cast<size_t>(pptr() - pbase()));
    setp(space_.data(), space_.data() + space_.size());
    return written ? 0 : -1;
  }

 private:
  bool WriteOut(const char* data, size_t size) {
    const WithoutSignals guard;
    while (error_ == 0 && size > 0) {
      const size_t part = size < size_t{1} << 26 ? size : size_t{1} << 26;
#ifdef _WIN32
      DWORD written = 0;
      if (!WriteFile(handle_, data, static_cast<DWORD>(part), &written, nullptr)) error_ = LastError();
#else
      const ssize_t written = write(descriptor_, data, part);
      if (written < 0) {
        if (errno == EINTR) continue;
        error_ = errno;
      }
#endif
      if (error_ != 0) break;
      data += written;
      size -= static_cast<size_t>(written);
    }
    return error_ == 0;
  }

#ifdef _WIN32
  HANDLE handle_;
#else
  int descriptor_;
#endif
  int error_ = 0;
  std::vector<char> space_ = std::vector<char>(1 << 16);
};

AtomicFile::AtomicFile(const std::string& path) : path_(path), target_(path) {
#ifdef _WIN32
  temporary_ = TemporaryName(target_);
  buffer_ = std::make_unique<Buffer>(temporary_);
#else
  struct stat status;
  const bool exists = stat(path.c_str(), &status) == 0;
  if (exists && !S_ISREG(status.st_mode)) {
    buffer_ = std::make_unique<Buffer>(path, O_TRUNC);
  } else {
    target_ = RealPath(path);
    RemoveAbandoned(Folder(target_));
    for (;;) {
      temporary_ = TemporaryName(target_);
      buffer_ = std::make_unique<Buffer>(temporary_, O_CREAT | O_EXCL);
      if (buffer_->error() != 0) break;
      (void)flock(buffer_->descriptor(), LOCK_EX | LOCK_NB);  // not every file system has locks
      if (exists) (void)fchmod(buffer_->descriptor(), status.st_mode & 07777);
      if (access(temporary_.c_str(), F_OK) == 0) break;  // else another process took it for abandoned before it was locked
    }
  }
#endif
  if (buffer_->error() != 0) {
    temporary_.clear();
    Fail(buffer_->error());
  }
  stream_ = std::make_unique<std::ostream>(buffer_.get());
}

AtomicFile::~AtomicFile() {
  if (temporary_.empty()) return;
  buffer_->Close();
#ifdef _WIN32
  DeleteFileW(SystemPath(temporary_).c_str());
#else
  unlink(temporary_.c_str());
#endif
}

std::ostream& AtomicFile::stream() { return *stream_; }

void AtomicFile::Write(const void* data, size_t size) {
  stream_->write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  if (buffer_->error() != 0) Fail(buffer_->error());
}

void AtomicFile::Commit() {
  buffer_->Flush();
#ifdef _WIN32
  buffer_->Close();
  if (buffer_->error() != 0) Fail(buffer_->error());
  if (!MoveFileExW(SystemPath(temporary_).c_str(), SystemPath(target_).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) Fail(LastError());
#else
  if (buffer_->error() != 0) Fail(buffer_->error());
  if (!temporary_.empty()) {
    if (rename(temporary_.c_str(), target_.c_str()) != 0) Fail(errno);  // while it is locked, so that nobody takes it for abandoned
    temporary_.clear();
    const int folder = open(Folder(target_).c_str(), O_RDONLY | O_CLOEXEC);
    if (folder >= 0) {
      (void)fsync(folder);  // where it is refused, the rename reaches the disk a little later
      close(folder);
    }
  }
  buffer_->Close();
#endif
  temporary_.clear();
}

void AtomicFile::Fail(int code) const {
  const std::string reason = std::generic_category().message(code);
  throw Error(SOL_ERROR_WRITE, path_ + ": cannot be written (" + reason + "); make room, change its permissions or write elsewhere");
}

void WriteFileAtomically(const std::string& path, const std::string& content) {
  AtomicFile file(path);
  file.Write(content.data(), content.size());
  file.Commit();
}

}  // namespace sol_rt
