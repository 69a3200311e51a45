// A file in memory that others may cut or change while it is read. What is read where nothing is any more is zeros, not
// SIGBUS, which would end the process; check() says that it has happened.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <span>
#include <string>

namespace kdtw::cpu {

struct MappedRange;  // what the handler knows of a file

// The whole file, read-only, sharing the system's pages with others that map it. The first one installs a handler of
// SIGBUS, which passes on what does not concern these files to the one that was there.
class MappedFile {
 public:
  // FileChanged where it cannot be opened, OutOfMemory where it cannot be mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // FileChanged where the file has another size or time than when it was opened, or a part of it could not be read. To
  // be asked before what was read is used and after: a call costs a microsecond.
  void check() const;

 private:
  const std::string path_;
  int descriptor_ = -1;
  struct stat status_{};
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  MappedRange* range_ = nullptr;
};

}  // namespace kdtw::cpu
