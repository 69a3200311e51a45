// What the files of the extension module kdtw_fast._core share. Only this folder includes pybind11; nothing in it
// includes torch (weights arrive as NumPy arrays, one at a time).
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "backend/operations.h"
#include "core/clock.h"

namespace kdtw {

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

// std::invalid_argument for other words.
DType parse_dtype(const std::string& name);

// Lets Python's signal handlers run every 20 ms without taking the lock more often than that.
class SignalPoll {
 public:
  void operator()() {
    const auto now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(20)) return;
    last_ = now;
    py::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  Clock::time_point last_ = Clock::now();
};

void bind_models(py::module_& m);
void bind_decoders(py::module_& m);
void bind_machine(py::module_& m);
void bind_for_tests(py::module_& m);

}  // namespace kdtw
