// The extension module kdtw_fast._core: models, decoders and a few probes for tests. Only this file and
// bindings_operations.cpp include pybind11; nothing here includes torch (weights arrive as NumPy arrays, one at a
// time).
#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/memory_probe.h"
#include "backend/cpu/packed_weight.h"
#include "backend/cpu/thread_pool.h"
#include "backend/cuda/drafter.h"
#include "backend/cuda/library.h"
#include "backend/cuda/memory.h"
#include "bindings_operations.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/philox.h"
#include "decode/probe.h"
#include "decode/session.h"

namespace py = pybind11;
using namespace kdtw;

namespace {

using FloatArray = py::array_t<float, py::array::c_style>;

Activation parse_activation(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "gated-gelu") return Activation::kGatedGelu;
  throw std::invalid_argument(concat("unknown activation '", name, "'; known are 'relu' and 'gated-gelu'"));
}

DType parse_dtype(const std::string& name) {
  if (name == "fp32") return DType::kFp32;
  if (name == "bf16") return DType::kBf16;
  if (name == "int8") return DType::kInt8;
  if (name == "fp16") return DType::kFp16;
  throw std::invalid_argument(concat("unknown dtype '", name, "'; known are 'fp32', 'fp16', 'bf16' and 'int8'"));
}

const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"fp32", "bf16", "int8", "fp16"};
  return kNames[static_cast<int>(dtype)];
}

using ByteArray = py::array_t<uint8_t, py::array::c_style>;

// `tensors(name)` gives a C-contiguous float32 array, or None where the tensor does not exist.
TensorSource tensor_source(const std::string& model, const py::function& tensors) {
  return [model, &tensors](const std::string& name, int rows, int columns) -> Tensor {
    const py::object value = tensors(name);
    require(!value.is_none(), model, ": tensor '", name, "' is missing from the checkpoint");
    auto array = value.cast<FloatArray>();
    std::string shape, expected = columns ? concat("[", rows, ", ", columns, "]") : concat("[", rows, "]");
    for (py::ssize_t i = 0; i < array.ndim(); ++i) shape += (i ? ", " : "") + std::to_string(array.shape(i));
    const bool fits = columns ? array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == columns
                              : array.ndim() == 1 && array.shape(0) == rows;
    require(fits, model, ": tensor '", name, "' has shape [", shape, "], but the config asks for ", expected);
    const std::span values(array.data(), static_cast<size_t>(array.size()));
    return {values, std::make_shared<FloatArray>(std::move(array))};
  };
}

// With `blobs`, what T5.blobs was, weights are read from those arrays in place and `tensors` is asked for no matrix.
std::shared_ptr<T5> make_model(const T5Config& config, const std::string& device, const py::function& tensors,
                               const std::optional<std::vector<ByteArray>>& blobs) {
  const TensorSource source = tensor_source(config.name, tensors);
  const auto backend = make_backend(device, 0);
  if (!blobs) return std::make_shared<T5>(*backend, config, source);
  size_t next = 0;
  const BlobSource packed = [&]() -> Blob {
    require(next < blobs->size(), config.name, ": there are only ", blobs->size(), " packed weights");
    const ByteArray& array = (*blobs)[next++];
    // The last to let go of the weights may be a thread that does not hold Python's lock.
    const std::shared_ptr<const ByteArray> owner(new ByteArray(array), [](const ByteArray* held) {
      py::gil_scoped_acquire lock;
      delete held;
    });
    return {std::as_bytes(std::span(array.data(), static_cast<size_t>(array.size()))), owner};
  };
  return std::make_shared<T5>(*backend, config, source, packed);
}

// The packed weights as arrays of bytes over the model's own memory, which they hold.
std::vector<ByteArray> blobs_of(const std::shared_ptr<T5>& model) {
  using Held = std::pair<std::shared_ptr<const T5>, std::shared_ptr<const void>>;
  const py::capsule owner(new Held(model, model->hold()), [](void* held) { delete static_cast<Held*>(held); });
  std::vector<ByteArray> blobs;
  for (const Weight* weight : model->weights()) {
    const auto bytes = weight->blob();
    blobs.emplace_back(bytes.size(), reinterpret_cast<const uint8_t*>(bytes.data()), owner);
    blobs.back().attr("setflags")(py::arg("write") = false);
  }
  return blobs;
}

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

template <typename T, typename Get>
py::array_t<T> padded(const std::vector<Row>& rows, size_t width, T fill, Get&& get) {
  py::array_t<T> out({rows.size(), width});
  auto view = out.template mutable_unchecked<2>();
  for (size_t r = 0; r < rows.size(); ++r)
    for (size_t t = 0; t < width; ++t) view(r, t) = t < rows[r].tokens.size() ? get(rows[r], t) : fill;
  return out;
}

template <typename T = int64_t, typename Get>
py::array_t<T> per_row(const std::vector<Row>& rows, Get&& get) {
  py::array_t<T> out(rows.size());
  for (size_t r = 0; r < rows.size(); ++r) out.mutable_at(r) = get(rows[r]);
  return out;
}

template <typename T, typename Get>
py::array_t<T> per_teacher(const std::vector<Row>& rows, int teachers, Get&& get) {
  py::array_t<T> out({rows.size(), static_cast<size_t>(teachers)});
  for (size_t r = 0; r < rows.size(); ++r)
    for (int k = 1; k <= teachers; ++k) out.mutable_at(r, k - 1) = get(rows[r], k);
  return out;
}

// The rows as arrays with a leading axis; rows at fault are left out and named in "faults" as (index, what is wrong).
py::dict to_python(std::vector<Row> rows, int teachers, int64_t pad, const SessionOptions& options) {
  py::list faults;
  std::erase_if(rows, [&](const Row& row) {
    if (row.finish != Finish::kFault) return false;
    faults.append(py::make_tuple(row.index, row.fault));
    return true;
  });
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, row.tokens.size());
  py::dict out;
  out["faults"] = faults;
  out["index"] = per_row(rows, [](const Row& row) { return row.index; });
  out["finish"] = per_row(rows, [](const Row& row) { return int(row.finish); });
  out["sequences"] = padded<int64_t>(rows, width, pad, [](const Row& row, size_t t) { return row.tokens[t]; });
  out["owners"] = padded<uint8_t>(rows, width, 0, [](const Row& row, size_t t) { return uint8_t(row.owners[t]); });
  out["teacher_index"] = padded<uint8_t>(rows, width, 0, [](const Row& row, size_t t) { return row.teacher_index[t]; });
  out["calls_by_teacher"] =
      per_teacher<int64_t>(rows, teachers, [](const Row& row, int k) { return row.own_calls[k - 1]; });
  out["fraction_by_teacher"] = per_teacher<float>(rows, teachers, [](const Row& row, int k) {
    return float(std::count(row.teacher_index.begin(), row.teacher_index.end(), k)) / float(row.outputs());
  });
  out["lengths"] = per_row(rows, [](const Row& row) { return row.outputs(); });
  out["teacher_calls"] = per_row(rows, [](const Row& row) { return row.calls; });
  out["teacher_fraction"] = per_row<float>(rows, [](const Row& row) {
    const auto written = std::count_if(row.owners.begin(), row.owners.end(), written_by_teacher);
    return float(written) / float(row.outputs());
  });
  out["drafted"] = per_row(rows, [](const Row& row) { return row.drafted; });
  out["accepted"] = per_row(rows, [](const Row& row) { return row.accepted; });
  out["rolled_back"] = per_row(rows, [](const Row& row) { return row.rolled_back; });
  if (options.want_reads) {
    py::list student, teacher;
    for (const auto& row : rows) {
      student.append(row.student_reads);
      teacher.append(row.teacher_reads);
    }
    out["student_reads"] = student;
    out["teacher_reads"] = teacher;
  }
  if (options.want_log_probs) {
    const float nan = std::nanf("");
    out["student_logprobs"] =
        padded<float>(rows, width, nan, [](const Row& row, size_t t) { return row.student_log_probs[t]; });
    out["teacher_logprobs"] =
        padded<float>(rows, width, nan, [](const Row& row, size_t t) { return row.teacher_log_probs[t]; });
  }
  return out;
}

py::dict run(Session& session, bool to_the_end, int64_t pad, const py::object& streamer) {
  SignalPoll signals;
  TokenStream stream;
  if (!streamer.is_none()) {
    stream = [&streamer](int row, int position, int32_t token, Owner owner) {
      py::gil_scoped_acquire lock;
      streamer(row, position, token, int(owner));
    };
  }
  std::vector<Row> rows;
  {
    py::gil_scoped_release unlocked;
    rows = session.run(to_the_end ? Until::kAllFinished : Until::kSomeFinished, [&signals] { signals(); }, stream);
  }
  return to_python(std::move(rows), session.teachers(), pad, session.options());
}

// The decoder's raw logits [T, V] for one row, reading its tokens in passes of the given sizes.
FloatArray decode_logits(const T5& model, const std::string& device, const std::vector<int32_t>& source,
                         const std::vector<int32_t>& tokens, const std::vector<uint8_t>& marked,
                         const std::vector<int>& chunks, int threads) {
  const auto backend = make_backend(device, threads);
  const int V = model.config().vocabulary, T = static_cast<int>(tokens.size());
  FloatArray out({T, V});
  T5State state(model, 1, static_cast<int>(source.size()), T);
  Workspace work;
  SignalPoll poll;
  const int row = 0;
  model.encode(*backend, state, work, std::span(&row, 1), std::span(&source, 1), [&] { poll(); });
  int begin = 0;
  for (const int size : chunks) {
    std::vector<InputToken> pass;
    std::vector<int32_t> wanted;
    for (int i = 0; i < size; ++i) {
      pass.push_back({tokens[begin + i], 0, begin + i, marked.empty() ? uint8_t{0} : marked[begin + i]});
      wanted.push_back(i);
    }
    model.decode(*backend, state, work, pass, wanted, [&] { poll(); });
    Buffer logits = backend->allocate(static_cast<size_t>(size) * V);
    backend->linear(model.head(), work.gathered, size, logits.data, false);
    backend->download(std::span(out.mutable_data() + static_cast<size_t>(begin) * V, static_cast<size_t>(size) * V),
                      logits.data);
    begin += size;
  }
  return out;
}

// (seconds of each repeat, {operation: (seconds, bytes of weights, flops) of one pass})
template <typename Pass>
py::tuple timed(Pass&& pass) {
  SignalPoll poll;
  PassCosts costs;
  {
    py::gil_scoped_release unlocked;
    costs = pass([&poll] { poll(); });
  }
  constexpr const char* kNames[kOperations] = {"linear", "head", "attention", "other"};
  py::dict operations;
  for (int i = 0; i < kOperations; ++i) {
    const auto& cost = costs.operations[i];
    operations[kNames[i]] = py::make_tuple(cost.seconds, cost.weight_bytes, cost.flops);
  }
  return py::make_tuple(costs.seconds, operations);
}

// x [T, K] times a weight [N, K] packed in the number format: [T, N], as a model's layers compute it.
FloatArray linear(const FloatArray& weight, const FloatArray& x, const std::string& dtype, int threads) {
  require(weight.ndim() == 2 && x.ndim() == 2 && weight.shape(1) == x.shape(1),
          "weight and x must be [N, K] and [T, K]");
  const int outputs = static_cast<int>(weight.shape(0)), inputs = static_cast<int>(weight.shape(1));
  const auto backend = make_cpu_backend(threads);
  const float* part = weight.data();
  const auto packed = backend->pack({&part, 1}, {&outputs, 1}, inputs, parse_dtype(dtype), WeightRole::kDecoder);
  FloatArray out({x.shape(0), weight.shape(0)});
  backend->linear(*packed, x.data(), static_cast<int>(x.shape(0)), out.mutable_data(), false);
  return out;
}

Ledger make_ledger(py::object max_calls, py::object max_fraction) {
  Ledger ledger;
  if (!max_calls.is_none()) ledger.max_calls = max_calls.cast<int>();
  if (!max_fraction.is_none()) ledger.max_fraction = max_fraction.cast<double>();
  return ledger;
}

// {library, architectures, devices} of the CUDA library, or None where there is none.
// The functions take and give addresses as numbers, 0 for none.
void use_cuda_companion(const py::object& allocate, const py::object& release, const py::object& current_stream) {
  if (allocate.is_none()) {
    cuda::use_companion(nullptr);
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
  cuda::use_companion(std::make_shared<const cuda::Companion>(
      cuda::Companion{[function = keep(allocate), address, number](int device, size_t bytes, void* stream) {
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
  info["torch"] = KDTW_TORCH_VERSION;
  info["cuda"] = cuda_info();
  info["simd_levels"] = cpu::simd_levels();
  info["simd"] = cpu::kernels().name;
  info["threads"] = cpu::hardware_threads();
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native decoding core of kdtw_fast.";
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const NonFiniteError& e) {
      PyErr_SetString(PyExc_FloatingPointError, e.what());
    }
  });

  py::class_<T5Config>(m, "T5Config")
      .def(py::init<>())
      .def_readwrite("name", &T5Config::name)
      .def_readwrite("vocab_size", &T5Config::vocabulary)
      .def_readwrite("d_model", &T5Config::model_size)
      .def_readwrite("d_kv", &T5Config::head_size)
      .def_readwrite("num_heads", &T5Config::heads)
      .def_readwrite("d_ff", &T5Config::feed_forward)
      .def_readwrite("num_layers", &T5Config::encoder_layers)
      .def_readwrite("num_decoder_layers", &T5Config::decoder_layers)
      .def_readwrite("relative_attention_num_buckets", &T5Config::bias_buckets)
      .def_readwrite("relative_attention_max_distance", &T5Config::bias_max_distance)
      .def_readwrite("layer_norm_epsilon", &T5Config::epsilon)
      .def_property(
          "feed_forward_proj", [](const T5Config& c) { return c.gated() ? "gated-gelu" : "relu"; },
          [](T5Config& c, const std::string& name) { c.activation = parse_activation(name); })
      .def_readwrite("scale_decoder_outputs", &T5Config::scale_outputs)
      .def_readwrite("has_lm_head", &T5Config::has_head)
      .def_readwrite("has_teacher_token_embedding", &T5Config::has_mark)
      .def_readwrite("num_teachers", &T5Config::teachers)
      .def_property(
          "dtype", [](const T5Config& c) { return name_of(c.dtype); },
          [](T5Config& c, const std::string& name) { c.dtype = parse_dtype(name); })
      .def_property(
          "cache_dtype", [](const T5Config& c) { return name_of(c.cache_dtype); },
          [](T5Config& c, const std::string& name) { c.cache_dtype = parse_dtype(name); });

  py::class_<T5, std::shared_ptr<T5>>(m, "T5")
      .def(py::init(&make_model), py::arg("config"), py::arg("device"), py::arg("tensors"),
           py::arg("blobs") = py::none())
      .def_property_readonly("config", &T5::config)
      .def_property_readonly("num_bytes", &T5::bytes)
      .def_property_readonly("blobs", &blobs_of)
      .def(
          "update",
          [](T5& model, const std::string& device, const py::function& tensors) {
            model.update(*make_backend(device, 0), tensor_source(model.config().name, tensors));
          },
          py::arg("device"), py::arg("tensors"))
      .def("decode_logits", &decode_logits, py::arg("device"), py::arg("source"), py::arg("tokens"), py::arg("marked"),
           py::arg("chunks"), py::arg("threads"));

  py::class_<Sampling>(m, "Sampling")
      .def(py::init([](float temperature, int top_k, float top_p) { return Sampling{temperature, top_k, top_p}; }),
           py::arg("temperature") = 0.0f, py::arg("top_k") = 0, py::arg("top_p") = 1.0f)
      .def_readonly("temperature", &Sampling::temperature)
      .def_readonly("top_k", &Sampling::top_k)
      .def_readonly("top_p", &Sampling::top_p);

  py::native_enum<Check>(m, "Check", "enum.Enum")
      .value("NONE", Check::kNone)
      .value("SCORE", Check::kScore)
      .value("LENIENCE", Check::kLenience)
      .value("REJECTION", Check::kRejection)
      .value("TOP_K", Check::kTopK)
      .value("DIVERGENCE", Check::kDivergence)
      .finalize();

  py::class_<MethodRules>(m, "MethodRules")
      .def(py::init([](bool two_models, bool teacher_alone, bool marks_teacher, bool on_tau, int draft_length,
                       double min_confidence, double max_uniform, double max_entropy, Check check, double threshold,
                       bool teacher_continues, bool checks_all) {
             return MethodRules{two_models,
                                teacher_alone,
                                marks_teacher,
                                {on_tau, draft_length, min_confidence, max_uniform, max_entropy},
                                {check, threshold, teacher_continues, checks_all}};
           }),
           py::kw_only(), py::arg("two_models") = false, py::arg("teacher_alone") = false,
           py::arg("marks_teacher") = false, py::arg("on_tau") = false, py::arg("draft_length") = 0,
           py::arg("min_confidence") = 0.0, py::arg("max_uniform") = CallRule().max_uniform,
           py::arg("max_entropy") = CallRule().max_entropy, py::arg("check") = Check::kNone, py::arg("threshold") = 0.0,
           py::arg("teacher_continues") = true, py::arg("checks_all") = false);

  py::class_<Ledger>(m, "Ledger")
      .def(py::init(&make_ledger), py::arg("max_calls") = py::none(), py::arg("max_fraction") = py::none())
      .def("allows", &Ledger::allows, py::arg("calls"), py::arg("position"))
      .def("first_replaceable", &Ledger::first_replaceable, py::arg("calls"), py::arg("position"));

  py::class_<SpecialTokens>(m, "SpecialTokens")
      .def(py::init([](int32_t start, std::vector<int32_t> end, std::vector<int32_t> tau) {
             return SpecialTokens{start, std::move(end), std::move(tau)};
           }),
           py::arg("start"), py::arg("end"), py::arg("tau") = std::vector<int32_t>());

  py::class_<Decoder, std::shared_ptr<Decoder>>(m, "Decoder")
      .def(py::init([](const std::string& device, std::shared_ptr<T5> student,
                       const std::optional<std::vector<std::shared_ptr<T5>>>& teachers, MethodRules method,
                       SpecialTokens special) {
             require(!method.two_models || !method.teacher_alone, "a teacher alone is a method of one model");
             const size_t n = teachers ? teachers->size() : 0;
             const size_t asked = method.call.on_tau ? special.tau.size() : method.two_models ? 1 : 0;
             require(n == asked, "this method asks ", asked, " teachers, got ", n);
             Decoder decoder{device, std::move(student), {}, method, std::move(special)};
             if (teachers) decoder.teachers.assign(teachers->begin(), teachers->end());
             return decoder;
           }),
           py::arg("device"), py::arg("student"), py::arg("teachers"), py::arg("method"), py::arg("special"));

  py::class_<SessionOptions>(m, "SessionOptions")
      .def(py::init([](std::vector<int32_t> forced_tokens, int max_new_tokens, int min_new_tokens, Sampling student,
                       Sampling teacher, uint64_t seed, double max_seconds, int teacher_batch, bool want_log_probs,
                       bool want_reads, int threads) {
             return SessionOptions{std::move(forced_tokens),
                                   max_new_tokens,
                                   min_new_tokens,
                                   student,
                                   teacher,
                                   seed,
                                   max_seconds,
                                   teacher_batch,
                                   want_log_probs,
                                   want_reads,
                                   threads};
           }),
           py::kw_only(), py::arg("forced_tokens"), py::arg("max_new_tokens"), py::arg("min_new_tokens"),
           py::arg("student_sampling"), py::arg("teacher_sampling"), py::arg("seed"), py::arg("max_seconds"),
           py::arg("teacher_batch"), py::arg("want_log_probs"), py::arg("want_reads"), py::arg("threads"));

  py::class_<Session>(m, "Session")
      .def(py::init([](std::shared_ptr<Decoder> decoder, SessionOptions options, int slots, int source_capacity) {
             return std::make_unique<Session>(std::move(decoder), std::move(options), slots, source_capacity);
           }),
           py::arg("decoder"), py::arg("options"), py::arg("slots"), py::arg("source_capacity"))
      .def("add", &Session::add, py::arg("key"), py::arg("ledger"), py::arg("student_source"),
           py::arg("teacher_sources"), py::arg("own_ledgers") = std::vector<Ledger>())
      .def("run", &run, py::arg("to_the_end"), py::arg("pad"), py::arg("streamer"))
      .def_property_readonly("free_slots", &Session::free_slots)
      .def_property_readonly("student_passes", [](const Session& s) { return s.totals().student_passes; })
      .def_property_readonly("teacher_passes", [](const Session& s) { return s.totals().teacher_passes; })
      .def_property_readonly("seconds", [](const Session& session) {
        const Totals t = session.totals();
        return py::make_tuple(t.encode_seconds, t.student_seconds, t.teacher_seconds, t.other_seconds);
      });

  py::class_<Probe>(m, "Probe")
      .def(py::init([](const std::string& device, std::shared_ptr<T5> model, int rows, int source_tokens, int history,
                       int most_tokens, int threads) {
             return std::make_unique<Probe>(device, std::move(model), rows, source_tokens, history, most_tokens,
                                            threads);
           }),
           py::arg("device"), py::arg("model"), py::arg("rows"), py::arg("source_tokens"), py::arg("history"),
           py::arg("most_tokens"), py::arg("threads"))
      .def(
          "encode",
          [](Probe& probe, int repeats) {
            return timed([&](const Poll& poll) { return probe.encode(repeats, poll); });
          },
          py::arg("repeats"))
      .def(
          "decode",
          [](Probe& probe, int tokens, int asked, int repeats) {
            return timed([&](const Poll& poll) { return probe.decode(tokens, asked, repeats, poll); });
          },
          py::arg("tokens"), py::arg("asked"), py::arg("repeats"))
      .def_property_readonly("cache_bytes", &Probe::cache_bytes);

  m.def(
      "uniform",
      [](uint64_t seed, uint64_t row, uint32_t position, uint32_t stream) {
        return uniform(seed, row, position, static_cast<RandomStream>(stream));
      },
      py::arg("seed"), py::arg("row"), py::arg("position"), py::arg("stream"));
  m.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"));
  m.def("draft_limit", &draft_limit, py::arg("method"), py::arg("room"));
  m.def("linear", &linear, py::arg("weight"), py::arg("x"), py::arg("dtype"), py::arg("threads") = 1);
  m.def("call_now", &call_now, py::arg("waiting"), py::arg("drafting"), py::arg("batch"));
  m.attr("packed_layout") = cpu::kPackedLayout;
  bind_operations(m);
  m.def("build_info", &build_info);
  m.def("resolve_device", &resolve_device, py::arg("device"));
  m.def("use_cuda_library", &cuda::use_library, py::arg("path"));
  m.def("use_cuda_drafting", &cuda::use_drafting, py::arg("how"), py::arg("steps"));
  m.def("use_cuda_companion", &use_cuda_companion, py::arg("allocate"), py::arg("release"), py::arg("current_stream"));
  m.def("set_simd", &cpu::set_simd, py::arg("level"));
  m.def("hardware_threads", &cpu::hardware_threads);
  m.def("read_rate", &cpu::read_rate, py::arg("bytes"), py::arg("threads"), py::arg("rounds"),
        py::call_guard<py::gil_scoped_release>());
}
