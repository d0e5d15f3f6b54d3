// A file of lines that reach the system one by one, so that a run that is interrupted leaves what it did.
#pragma once

#include <string>

namespace sol_rt {

class LineFile {
 public:
  // Empties the file if it is there. Throws std::runtime_error if another process writes it; all functions throw std::system_error.
  explicit LineFile(const std::string& path);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  void Write(const std::string& line);
  void Close();

 private:
  int descriptor_;
};

}  // namespace sol_rt
