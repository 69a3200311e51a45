// Errors that cross into Python: bad input is std::invalid_argument (ValueError), wrong use std::runtime_error.
#pragma once

#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

namespace kdtw {

// MemoryError with the size that was asked for.
class OutOfMemory : public std::bad_alloc {
 public:
  // The sentence where a small piece is refused, which says no more of itself.
  static constexpr const char* kSmall =
      "memory has run out; lower max_new_tokens, the sources' length or the number of rows";

  // of: what memory, and what to do, as " on device cuda:0; choose …"; empty: the host's.
  explicit OutOfMemory(size_t bytes, const std::string& of = {})
      : message_("cannot allocate " + std::to_string(bytes) + " bytes" +
                 (of.empty() ? "; lower max_new_tokens, the sources' length or the number of rows" : of)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// FloatingPointError in Python.
class NonFiniteError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// OSError in Python: a file that is in use is not what it was.
class FileChanged : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// The boundary check: one sentence made of the parts, thrown as ValueError when `ok` is false.
template <typename... Parts>
void require(bool ok, const Parts&... parts) {
  if (!ok) throw std::invalid_argument(concat(parts...));
}

}  // namespace kdtw
