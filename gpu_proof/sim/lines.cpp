// From code addresses to lines of the kernels' sources, by addr2line.
#include <cstdio>
#include <cstdlib>
#include <set>

#include <dlfcn.h>
#include "check.h"
#include "checker.h"

namespace simt::check {
namespace {

constexpr char kOpen = '\x01', kClose = '\x02';
std::map<const void*, std::string> known;

// "…/kernels/linear.cu:12 (discriminator 3)" -> "linear.cu:12"; empty for lines of the shim.
std::string short_line(std::string line) {
  while (!line.empty() && line.back() == '\n') line.pop_back();
  if (line.find("/gpu_proof/sim/") != std::string::npos || line.rfind("??", 0) == 0) return "";
  const size_t slash = line.rfind('/');
  if (slash != std::string::npos) line = line.substr(slash + 1);
  return line.substr(0, line.find(" ("));
}

}  // namespace

std::string code_reference(const void* pc) {
  char text[32];
  std::snprintf(text, sizeof text, "%c%p%c", kOpen, pc, kClose);
  return text;
}

std::map<const void*, std::string> lines_of(const std::vector<const void*>& addresses) {
  Dl_info library{};
  std::string command;
  for (const void* pc : addresses) {
    if (known.contains(pc) || !dladdr(pc, &library)) continue;
    if (command.empty()) command = std::string("addr2line -a -i -e '") + library.dli_fname + "'";
    char text[32];  // -1: the call, not what follows it
    std::snprintf(text, sizeof text, " %#tx", static_cast<const char*>(pc) - 1 - static_cast<char*>(library.dli_fbase));
    command += text;
  }
  if (!command.empty()) {
    if (FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r")) {
      const void* now = nullptr;
      char line[1024];
      while (std::fgets(line, sizeof line, pipe)) {
        if (line[0] == '0' && line[1] == 'x') {
          now = static_cast<char*>(library.dli_fbase) + std::strtoull(line, nullptr, 16) + 1;
          known[now];
        } else if (const std::string text = short_line(line); now && !text.empty()) {
          known[now] += (known[now].empty() ? "" : " < ") + text;
        }
      }
      pclose(pipe);
    }
  }
  std::map<const void*, std::string> lines;
  for (const void* pc : addresses) {
    std::string& text = known[pc];
    if (text.empty()) text = "an unknown line";
    lines[pc] = text;
  }
  return lines;
}

std::string with_lines(const std::string& text) {
  std::vector<const void*> addresses;
  const auto address_at = [&](size_t open) {
    return reinterpret_cast<const void*>(std::strtoull(text.c_str() + open + 1, nullptr, 16));
  };
  for (size_t open = 0; (open = text.find(kOpen, open)) != std::string::npos; ++open) {
    addresses.push_back(address_at(open));
  }
  const auto lines = lines_of(addresses);
  std::string out;
  size_t from = 0;
  for (size_t open; (open = text.find(kOpen, from)) != std::string::npos; from = text.find(kClose, open) + 1) {
    out += text.substr(from, open - from) + lines.at(address_at(open));
  }
  return out + text.substr(from);
}

}  // namespace simt::check
