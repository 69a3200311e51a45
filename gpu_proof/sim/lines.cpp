// From code addresses to lines of the kernels' sources, by addr2line.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

#include <dlfcn.h>
#include "check.h"
#include "checker.h"

namespace simt::check {
namespace {

constexpr char kOpen = '\x01', kClose = '\x02';

// "linear.cu:12" of one line of addr2line, as "…/kernels/linear.cu:12 (discriminator 3)"; empty for the shim's.
std::string short_line(std::string line) {
  if (line.find("/gpu_proof/sim/") != std::string::npos || line.rfind("??", 0) == 0) return "";
  const size_t slash = line.rfind('/');
  if (slash != std::string::npos) line = line.substr(slash + 1);
  return line.substr(0, line.find_first_of(" \n"));
}

// file:line of an address in this library, where it was inlined as "inner < outer".
std::string line_of(const void* pc) {
  static std::map<const void*, std::string> known;
  if (const auto found = known.find(pc); found != known.end()) return found->second;
  Dl_info library{};
  dladdr(&__ehdr_start, &library);
  std::ostringstream command;  // -1: the call, not what follows it
  command << "addr2line -i -e '" << library.dli_fname << "' 0x" << std::hex
          << static_cast<const char*>(pc) - 1 - &__ehdr_start << " 2>/dev/null";
  std::string text;
  if (FILE* pipe = popen(command.str().c_str(), "r")) {
    char line[1024];
    while (std::fgets(line, sizeof line, pipe)) {
      if (const std::string place = short_line(line); !place.empty()) text += (text.empty() ? "" : " < ") + place;
    }
    pclose(pipe);
  }
  return known[pc] = text.empty() ? "an unknown line" : text;
}

}  // namespace

std::string code_reference(const void* pc) {
  char text[32];
  std::snprintf(text, sizeof text, "%c%p%c", kOpen, pc, kClose);
  return text;
}

std::string with_lines(const std::string& text) {
  std::string out;
  size_t from = 0;
  for (size_t open; (open = text.find(kOpen, from)) != std::string::npos; from = text.find(kClose, open) + 1) {
    out += text.substr(from, open - from);
    out += line_of(reinterpret_cast<const void*>(std::strtoull(text.c_str() + open + 1, nullptr, 16)));
  }
  return out + text.substr(from);
}

}  // namespace simt::check
