// From a kernel's address to its name, and from the name to what was made of it from nvcc's PTX. g++ and nvcc agree on
// how names are mangled up to anonymous namespaces, so demangled names without those and without parameters are keys.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <stdexcept>
#include <unordered_map>

#include "device.h"
#include "translated.h"

namespace simt {
namespace {

std::string demangled(const std::string& mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  const std::string name = status == 0 ? text : mangled;
  std::free(text);
  return name;
}

// "void a::(anonymous namespace)::k<int, 4>(float*)" becomes "a::k<int, 4>".
std::string key_of(std::string name) {
  static const std::string kAnonymous = "(anonymous namespace)::";
  for (size_t at; (at = name.find(kAnonymous)) != std::string::npos;) name.erase(at, kAnonymous.size());
  int depth = 0;
  size_t begin = 0, end = name.size();
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (depth) continue;
    if (name[i] == ' ') begin = i + 1;  // what precedes is the return type
    if (name[i] == '(') {
      end = i;
      break;
    }
  }
  return name.substr(begin, end - begin);
}

// The functions of this library, local ones too: offset -> mangled name, from the symbol table in its file.
std::unordered_map<size_t, std::string> read_symbols(const char* path) {
  std::ifstream in(path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(in)), {});
  std::unordered_map<size_t, std::string> symbols;
  if (file.size() < sizeof(Elf64_Ehdr)) return symbols;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(file.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbol = reinterpret_cast<const Elf64_Sym*>(file.data() + sections[i].sh_offset);
    const char* strings = file.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t n = sections[i].sh_size / sizeof(Elf64_Sym); n > 0; --n, ++symbol) {
      if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC) symbols.emplace(symbol->st_value, strings + symbol->st_name);
    }
  }
  return symbols;
}

struct Translated {
  TranslatedKernel kernel;
  std::vector<SharedArray> arrays;
};
std::map<std::string, Translated>& registry() {
  static std::map<std::string, Translated> kernels;
  return kernels;
}

}  // namespace

std::string kernel_name(const void* kernel, const char* spelled) {
  static std::unordered_map<const void*, std::string> known;
  const auto found = known.find(kernel);
  if (found != known.end()) return found->second;
  Dl_info library{};
  std::string name = spelled;
  if (dladdr(kernel, &library) && library.dli_fname) {
    static const auto symbols = read_symbols(library.dli_fname);
    const auto symbol = symbols.find(
        static_cast<size_t>(static_cast<const char*>(kernel) - static_cast<const char*>(library.dli_fbase)));
    if (symbol != symbols.end()) name = key_of(demangled(symbol->second));
  }
  return known.emplace(kernel, name).first->second;
}

RegisterTranslated::RegisterTranslated(const char* mangled, void (*run)(void**), unsigned static_shared,
                                       std::vector<TranslatedArray> arrays) {
  const std::string name = key_of(demangled(mangled));
  Translated translated{{run, static_shared}, {}};
  for (const auto& array : arrays) {
    translated.arrays.push_back({{nullptr, 0}, demangled(array.name), array.offset, array.bytes});
  }
  if (!registry().emplace(name, std::move(translated)).second) {
    throw std::runtime_error("two translated kernels are named " + name);
  }
}

TranslatedKernel find_translated(const void* kernel, const char* spelled) {
  const std::string name = kernel_name(kernel, spelled);
  const auto found = registry().find(name);
  if (found == registry().end()) throw std::runtime_error("no kernel " + name + " was translated from PTX");
  return found->second.kernel;
}

const std::vector<SharedArray>* translated_arrays(const void* kernel) {
  const auto found = registry().find(kernel_name(kernel, ""));
  return found == registry().end() ? nullptr : &found->second.arrays;
}

}  // namespace simt
