// Replaces a file as a whole: a reader, a crash or a full disk finds the old content or the new one.
#pragma once

#include <memory>
#include <ostream>
#include <string>

namespace sol_rt {

// Writes beside the file under a temporary name, which begins with a dot and ends in `.sol-tmp`. `Commit` flushes that to the disk and renames it. Without
// a commit the temporary file is removed. A device or a pipe is written to directly. Every function throws SOL_ERROR_WRITE if the system refuses.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  std::ostream& stream();  // its state says whether a write failed, as does `Commit`
  void Write(const void* data, size_t size);
  void Commit();

 private:
  class Buffer;
  [[noreturn]] void Fail(int code) const;
  std::string path_, target_, temporary_;
  std::unique_ptr<Buffer> buffer_;
  std::unique_ptr<std::ostream> stream_;
};

void WriteFileAtomically(const std::string& path, const std::string& content);

}  // namespace sol_rt
