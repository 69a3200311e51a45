// Models in Python, and the probe that times their passes.
#include <pybind11/functional.h>

#include <memory>
#include <optional>
#include <utility>

#include "backend/cpu/packed_weight.h"
#include "bindings/bindings.h"
#include "core/error.h"
#include "decode/probe.h"
#include "model/t5.h"

namespace kdtw {

DType parse_dtype(const std::string& name) {
  if (name == "fp32") return DType::kFp32;
  if (name == "bf16") return DType::kBf16;
  if (name == "int8") return DType::kInt8;
  if (name == "fp16") return DType::kFp16;
  throw std::invalid_argument(concat("unknown dtype '", name, "'; known are 'fp32', 'fp16', 'bf16' and 'int8'"));
}

namespace {

Activation parse_activation(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "gated-gelu") return Activation::kGatedGelu;
  throw std::invalid_argument(concat("unknown activation '", name, "'; known are 'relu' and 'gated-gelu'"));
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
  const Backend backend = make_backend(device, 0);
  if (!blobs) return std::make_shared<T5>(*backend.operations, config, source);
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
  return std::make_shared<T5>(*backend.operations, config, source, packed);
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

// The decoder's raw logits [T, V] for one row, reading its tokens in passes of the given sizes.
FloatArray decode_logits(const T5& model, const std::string& device, const std::vector<int32_t>& source,
                         const std::vector<int32_t>& tokens, const std::vector<uint8_t>& marked,
                         const std::vector<int>& chunks, int threads) {
  const Backend backend = make_backend(device, threads);
  Operations& operations = *backend.operations;
  const int V = model.config().vocabulary, T = static_cast<int>(tokens.size());
  FloatArray out({T, V});
  T5State state(model, 1, static_cast<int>(source.size()), T);
  Workspace work;
  SignalPoll poll;
  const int row = 0;
  model.encode(operations, state, work, std::span(&row, 1), std::span(&source, 1), [&] { poll(); });
  int begin = 0;
  for (const int size : chunks) {
    std::vector<InputToken> pass;
    std::vector<int32_t> wanted;
    for (int i = 0; i < size; ++i) {
      pass.push_back({tokens[begin + i], 0, begin + i, marked.empty() ? uint8_t{0} : marked[begin + i]});
      wanted.push_back(i);
    }
    TokenLists lists;
    model.decode(operations, state, work, operations.place(model.list(state, pass, wanted, lists)), [&] { poll(); });
    Buffer logits = operations.allocate(static_cast<size_t>(size) * V);
    operations.linear(model.head(), work.gathered, size, logits.data, false);
    operations.download(std::span(out.mutable_data() + static_cast<size_t>(begin) * V, static_cast<size_t>(size) * V),
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

}  // namespace

void bind_models(py::module_& m) {
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
            model.update(*make_backend(device, 0).operations, tensor_source(model.config().name, tensors));
          },
          py::arg("device"), py::arg("tensors"))
      .def("decode_logits", &decode_logits, py::arg("device"), py::arg("source"), py::arg("tokens"), py::arg("marked"),
           py::arg("chunks"), py::arg("threads"));

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

  m.attr("packed_layout") = cpu::kPackedLayout;
}

}  // namespace kdtw
