// How C++ that gpu_proof/translate.py made of nvcc's PTX announces its kernels.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

struct TranslatedArray {
  const char* name;  // mangled
  size_t offset, bytes;
};

struct RegisterTranslated {
  RegisterTranslated(const char* mangled, void (*run)(void** arguments), unsigned static_shared,
                     std::vector<TranslatedArray> arrays);
};

}  // namespace simt
