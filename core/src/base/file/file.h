// Files: what the system says of them, reading and mapping. Paths are UTF-8 on every system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace sol_rt {

#ifdef _WIN32
std::wstring SystemPath(const std::string& path);  // throws SOL_ERROR_USAGE for a path that is not UTF-8
#else
inline const std::string& SystemPath(const std::string& path) { return path; }
#endif

std::string JoinPath(const std::string& folder, const std::string& name);

enum class FileKind { kNone, kFile, kFolder, kOther };
FileKind KindOf(const std::string& path);  // of what a link leads to
bool IsLink(const std::string& path);

// Identity of a file, and the time of its last change. While both stay the same, so does the content.
struct FileState {
  uint64_t device = 0, inode = 0;
  int64_t size = 0, modified = 0, changed = 0;  // bytes, nanoseconds
  bool operator==(const FileState& other) const {
    return device == other.device && inode == other.inode && size == other.size && modified == other.modified && changed == other.changed;
  }
  bool SameFile(const FileState& other) const { return device == other.device && inode == other.inode; }
  bool SameContent(const FileState& other) const { return size == other.size && modified == other.modified; }
};

// A file that is open for reading.
class OpenFile {
 public:
  explicit OpenFile(const std::string& path);  // throws std::system_error
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  FileState State() const;                    // throws std::system_error
  size_t Read(void* buffer, size_t size);     // from the current place on; 0 at the end; throws std::system_error
  const uint8_t* Map(size_t size);            // the first `size` > 0 bytes, until the file is closed; throws std::system_error

 private:
#ifdef _WIN32
  void* handle_;
  void* mapping_ = nullptr;
#else
  int descriptor_;
#endif
  const uint8_t* mapped_ = nullptr;
  size_t mapped_size_ = 0;
};

FileState StateOf(const std::string& path);  // throws std::system_error

// The whole content. Throws SOL_ERROR_BUNDLE if the file cannot be read or is longer than `most` bytes.
std::string ReadFile(const std::string& path, uint64_t most, const std::string& expected = "a readable file",
                     const std::string& hint = "export the bundle again");

// Of a whole file, lower-case hex. `progress` gets the bytes read so far. Throws SOL_ERROR_BUNDLE if the file cannot be read.
std::string Sha256OfFile(const std::string& path, const std::function<void(uint64_t)>& progress = nullptr);

// Text of the system's error, as in `No such file or directory`.
std::string Reason(const std::exception& error);

}  // namespace sol_rt
