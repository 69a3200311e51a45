// The extension module kdtw_fast._core, and what it says of the machine: devices, libraries, threads.
#include <exception>
#include <memory>
#include <new>

#include "backend/cpu/memory_probe.h"
#include "backend/cpu/simd_levels.h"
#include "backend/cpu/thread_pool.h"
#include "backend/cuda/library.h"
#include "backend/cuda/memory.h"
#include "backend/runner.h"
#include "bindings/bindings.h"
#include "core/error.h"

namespace kdtw {
namespace {

// The functions take and give addresses as numbers, 0 for none.
void use_cuda_allocator(const py::object& allocate, const py::object& release, const py::object& current_stream) {
  if (allocate.is_none()) {
    cuda::use_allocator(nullptr);
    return;
  }
  // Memory may go back when Python is no more.
  const auto keep = [](const py::object& function) {
    return std::shared_ptr<const py::function>(new py::function(py::cast<py::function>(function)),
                                               [](const py::function* held) {
                                                 if (!Py_IsInitialized()) return;
                                                 const py::gil_scoped_acquire gil;
                                                 delete held;
                                               });
  };
  const auto address = [](const py::object& number) { return reinterpret_cast<void*>(py::cast<uintptr_t>(number)); };
  const auto number = [](void* address) { return reinterpret_cast<uintptr_t>(address); };
  cuda::use_allocator(std::make_shared<const cuda::ProgramAllocator>(
      cuda::ProgramAllocator{[function = keep(allocate), address, number](int device, size_t bytes, void* stream) {
                               const py::gil_scoped_acquire gil;
                               return address((*function)(device, bytes, number(stream)));
                             },
                             [function = keep(release), number](void* memory) {
                               if (!Py_IsInitialized()) return;
                               const py::gil_scoped_acquire gil;
                               try {
                                 (*function)(number(memory));
                               } catch (py::error_already_set& error) {
                                 error.discard_as_unraisable("release of device memory");
                               }
                             },
                             [function = keep(current_stream), address](int device) {
                               const py::gil_scoped_acquire gil;
                               return address((*function)(device));
                             }}));
}

// {library, architectures, devices} of the CUDA library, or None where there is none.
py::object cuda_info() {
  try {
    const cuda::Library& library = cuda::library();
    py::dict info;
    info["library"] = library.path;
    info["kind"] = library.table->kind;
    info["architectures"] = library.table->architectures;
    info["devices"] = cuda::devices(library);
    return info;
  } catch (const std::runtime_error&) {
    return py::none();
  }
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = "g++ " __VERSION__;
  info["cuda"] = cuda_info();
  info["simd_levels"] = cpu::simd_levels();
  info["simd"] = cpu::kernels().name;
  info["threads"] = cpu::hardware_threads();
  return info;
}

}  // namespace

void bind_machine(py::module_& m) {
  m.def("build_info", &build_info);
  m.def("resolve_device", &resolve_device, py::arg("device"));
  m.def("use_cuda_allocator", &use_cuda_allocator, py::arg("allocate"), py::arg("release"), py::arg("current_stream"));
  m.def("hardware_threads", &cpu::hardware_threads);
  m.def("read_rate", &cpu::read_rate, py::arg("bytes"), py::arg("threads"), py::arg("rounds"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace kdtw

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native decoding core of kdtw_fast.";
  pybind11::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const kdtw::NonFiniteError& e) {
      PyErr_SetString(PyExc_FloatingPointError, e.what());
    } catch (const kdtw::FileChanged& e) {
      PyErr_SetString(PyExc_OSError, e.what());
    } catch (const kdtw::OutOfMemory& e) {
      PyErr_SetString(PyExc_MemoryError, e.what());
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, kdtw::OutOfMemory::kSmall);
    }
  });
  kdtw::bind_models(m);
  kdtw::bind_decoders(m);
  kdtw::bind_machine(m);
  kdtw::bind_for_tests(m);
}
