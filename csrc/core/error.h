// Errors that cross into Python: bad input is std::invalid_argument (ValueError),
// a non-finite logit is NonFiniteError (FloatingPointError), a user's Ctrl-C is Interrupted.
#pragma once

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
