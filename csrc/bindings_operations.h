#pragma once

#include <pybind11/pybind11.h>

namespace kdtw {

void bind_operations(pybind11::module_& m);

}  // namespace kdtw
