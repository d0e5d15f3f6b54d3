// A file of lines that reach the system one by one, so that a run that is interrupted leaves what it did.
#pragma once

#include <string>

namespace sol_rt {

class LineFile {
 public:
  explicit LineFile(const std::string& path);  // empties the file if it is there; throws std::runtime_error if another process writes it, as all functions std::system_error
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  void Write(const std::string& line);
  void Close();

 private:
  int descriptor_;
};

}  // namespace sol_rt
