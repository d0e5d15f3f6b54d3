#include "generate/trace/line_file.h"

#include <fcntl.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "base/file/file.h"
#include "base/file/without_signals.h"

#ifdef _WIN32
#include <io.h>
#include <sys/stat.h>
#else
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace sol_rt {
namespace {

[[noreturn]] void Fail() { throw std::system_error(errno, std::generic_category()); }

#ifdef _WIN32
int Open(const std::string& path) {
  return _wopen(SystemPath(path).c_str(), _O_WRONLY | _O_CREAT | _O_TRUNC | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE);
}
int WriteSome(int file, const char* data, size_t size) { return _write(file, data, static_cast<unsigned>(size)); }
int CloseFile(int file) { return _close(file); }
void HoldAndEmpty(int) {}  // emptied as it was opened
#else
int Open(const std::string& path) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);  // fails for a pipe that nobody reads
  if (file >= 0) fcntl(file, F_SETFL, 0);                                                  // from here on a slow reader is waited for
  return file;
}
// Keeps other processes from writing a regular file until it is closed, where the file system has locks, and empties it.
void HoldAndEmpty(int file) {
  struct stat state;
  if (fstat(file, &state) != 0) Fail();
  if (!S_ISREG(state.st_mode)) return;
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(file, F_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES)) throw std::runtime_error("another process is writing it");
  if (ftruncate(file, 0) != 0) Fail();
}
ssize_t WriteSome(int file, const char* data, size_t size) { return write(file, data, size); }
int CloseFile(int file) { return close(file); }
#endif

}  // namespace

LineFile::LineFile(const std::string& path) : descriptor_(Open(path)) {
  if (descriptor_ < 0 && errno == ENXIO) throw std::runtime_error("got a pipe or socket that nobody reads, expected a file");
  if (descriptor_ < 0) Fail();
  try {
    HoldAndEmpty(descriptor_);
  } catch (...) {
    CloseFile(descriptor_);
    throw;
  }
}

LineFile::~LineFile() {
  if (descriptor_ >= 0) CloseFile(descriptor_);
}

void LineFile::Write(const std::string& line) {
  const WithoutSignals guard;
  for (size_t done = 0; done < line.size();) {
    const auto written = WriteSome(descriptor_, line.data() + done, line.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) Fail();
    done += static_cast<size_t>(written);
  }
}

void LineFile::Close() {
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (descriptor >= 0 && CloseFile(descriptor) != 0) Fail();
}

}  // namespace sol_rt
