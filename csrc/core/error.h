// Errors that cross into Python: bad input is std::invalid_argument (ValueError),
// a non-finite logit is NonFiniteError (FloatingPointError), a user's Ctrl-C is Interrupted.
#pragma once

#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

namespace kdtw {

struct NonFiniteError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Thrown out of the loop when the poll asks to stop; the poll's owner knows why.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// MemoryError with the size that was asked for.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes)
      : message_("cannot allocate " + std::to_string(bytes) +
                 " bytes; lower max_new_tokens, the sources' length or the number of rows") {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
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
