// A library of CUDA kernels (kernels.h), opened at run time: nvcc's beside the extension, or another one that a test or
// the environment names. One that is open stays open.
#pragma once

#include <string>
#include <vector>

#include "backend/cuda/kernels.h"

namespace kdtw::cuda {

struct Library {
  std::string path;
  const KdtwCudaTable* table;
};

// The library in use. std::runtime_error with one sentence where there is none or it does not fit.
const Library& library();
// Chooses the library for what is made from now on; what was made with another one keeps that. Empty: the default,
// which is the path in the environment variable KDTW_CUDA_LIBRARY, or else libkdtw_cuda.so beside the extension. Throws
// as library() does, and then changes nothing.
void use_library(const std::string& path);

// The devices that the library sees, as "name, compute capability 7.5, 15.8 GB"; empty without a driver.
std::vector<std::string> devices(const Library& library);

// Unless status is 0: std::runtime_error with CUDA's description. doing: what failed, as "copy to the device".
void check(const KdtwCudaTable& table, int32_t status, const char* doing);

}  // namespace kdtw::cuda
