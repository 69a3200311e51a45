// Models in Python, and the probe that times their passes.
#include <pybind11/functional.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "backend/cpu/mapped_file.h"
#include "backend/cpu/packed_weight.h"
#include "bindings/bindings.h"
#include "core/error.h"
#include "decode/probe.h"
#include "model/transformer.h"

namespace kdtw {

DType parse_dtype(const std::string& name) {
  if (name == "fp32") return DType::kFp32;
  if (name == "bf16") return DType::kBf16;
  if (name == "int8") return DType::kInt8;
  if (name == "fp16") return DType::kFp16;
  throw std::invalid_argument(concat("unknown dtype '", name, "'; known are 'fp32', 'fp16', 'bf16' and 'int8'"));
}

namespace {

const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"fp32", "bf16", "int8", "fp16"};
  return kNames[static_cast<int>(dtype)];
}

constexpr const char* kFunctions[] = {"relu", "gelu", "gelu_tanh", "silu"};

// Calls visit(name, field) for every field of a stack, and then of a model: what Python calls a spec is a dict of
// these.
template <typename Stack, typename Visit>
void each_field_of_stack(Stack& stack, Visit&& visit) {
  visit("layers", stack.layers);
  visit("model_size", stack.model_size);
  visit("heads", stack.heads);
  visit("key_heads", stack.key_heads);
  visit("head_size", stack.head_size);
  visit("feed_forward", stack.feed_forward);
  visit("function", stack.activation.function);
  visit("gated", stack.activation.gated);
  visit("layer_norm", stack.layer_norm);
  visit("epsilon", stack.epsilon);
  visit("query_norm_whole", stack.query_norm_whole);
  visit("embedding_scale", stack.embedding_scale);
  visit("attention_scale", stack.attention_scale);
  visit("attention_cap", stack.attention_cap);
  visit("bias_buckets", stack.bias_buckets);
  visit("bias_max_distance", stack.bias_max_distance);
  visit("bias_per_layer", stack.bias_per_layer);
  visit("positions", stack.positions);
  visit("first_position", stack.first_position);
  visit("rotary_pairs", stack.rotary_pairs);
  visit("rotary_scales", stack.rotary_scales);
  visit("windows", stack.windows);
  visit("rotary_kind", stack.rotary_kind);
}
template <typename Model, typename Visit>
void each_field(Model& model, Visit&& visit) {
  visit("name", model.name);
  visit("vocabulary", model.vocabulary);
  visit("encoder", model.encoder);
  visit("decoder", model.decoder);
  visit("has_head", model.has_head);
  visit("head_cap", model.head_cap);
  visit("teachers", model.teachers);
  visit("dtype", model.dtype);
  visit("cache_dtype", model.cache_dtype);
  visit("kept", model.kept);
}

// Fields that the dict lacks stay what they are; std::invalid_argument for a name that is none, or another type.
struct Reader {
  const py::dict& fields;
  const std::string prefix;
  size_t found = 0;

  template <typename Field>
  void operator()(const char* name, Field& field) {
    if (!fields.contains(name)) return;
    ++found;
    const py::object value = fields[name];
    try {
      if constexpr (std::is_same_v<Field, StackConfig>) {
        Reader inner{value.cast<py::dict>(), concat(prefix, name, ".")};
        each_field_of_stack(field, inner);
        inner.check();
      } else if constexpr (std::is_same_v<Field, DType>) {
        field = parse_dtype(value.cast<std::string>());
      } else if constexpr (std::is_same_v<Field, Function>) {
        const auto* known = std::find(std::begin(kFunctions), std::end(kFunctions), value.cast<std::string>());
        require(known != std::end(kFunctions), prefix, name, " is ", py::repr(value).cast<std::string>(),
                "; known are 'relu', 'gelu', 'gelu_tanh' and 'silu'");
        field = static_cast<Function>(known - kFunctions);
      } else {
        field = value.cast<Field>();
      }
    } catch (const py::cast_error&) {
      throw std::invalid_argument(concat(prefix, name, " cannot be ", py::repr(value).cast<std::string>()));
    }
  }
  void check() const { require(found == fields.size(), "the spec has a field that none of ", prefix, "… is called"); }
};

struct Writer {
  py::dict fields;

  template <typename Field>
  void operator()(const char* name, const Field& field) {
    if constexpr (std::is_same_v<Field, StackConfig>) {
      Writer inner;
      each_field_of_stack(field, inner);
      fields[name] = inner.fields;
    } else if constexpr (std::is_same_v<Field, DType>) {
      fields[name] = name_of(field);
    } else if constexpr (std::is_same_v<Field, Function>) {
      fields[name] = kFunctions[static_cast<int>(field)];
    } else {
      fields[name] = field;
    }
  }
};

Config config_of(const py::dict& spec) {
  Config config;
  Reader reader{spec, "spec."};
  each_field(config, reader);
  reader.check();
  return config;
}

py::dict spec_of(const Config& config) {
  Writer writer;
  each_field(config, writer);
  return writer.fields;
}

using ByteArray = py::array_t<uint8_t, py::array::c_style>;

// `tensors(name, rows, columns)` gives a C-contiguous float32 array of that shape (columns 0: a vector), or None where
// the model has no such tensor.
TensorSource tensor_source(const std::string& model, const py::function& tensors) {
  return [model, &tensors](const std::string& name, int rows, int columns) -> std::optional<Tensor> {
    const py::object value = tensors(name, rows, columns);
    if (value.is_none()) return {};
    auto array = value.cast<FloatArray>();
    std::string shape, expected = columns ? concat("[", rows, ", ", columns, "]") : concat("[", rows, "]");
    for (py::ssize_t i = 0; i < array.ndim(); ++i) shape += (i ? ", " : "") + std::to_string(array.shape(i));
    const bool fits = columns ? array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == columns
                              : array.ndim() == 1 && array.shape(0) == rows;
    require(fits, model, ": tensor '", name, "' has shape [", shape, "], but the config asks for ", expected);
    const std::span values(array.data(), static_cast<size_t>(array.size()));
    return Tensor{values, std::make_shared<FloatArray>(std::move(array))};
  };
}

// A weight in which int8 loses more than so much, in Transformer::int8_losses' measure, is bf16 instead: noise of a
// ninth of the signal's size. tests/test_outliers.py holds the shipped models below it.
constexpr double kMostLost = 0.0125;

// (source, decoder's tokens)
using ProbeLists = std::pair<std::vector<int32_t>, std::vector<int32_t>>;

// Nothing in it is Python's but the poll, which takes the lock itself.
std::map<std::string, double> int8_losses(const Transformer& model, const ProbeLists& probe, const Poll& poll) {
  const py::gil_scoped_release unlocked;
  return model.int8_losses({probe.first, probe.second}, poll);
}

// The model. With a probe, which is for int8, it is made for the CPU and tried first: what loses too much is bf16.
Transformer made(Operations& operations, bool on_cpu, Config config, const TensorSource& tensors,
                 const std::optional<ProbeLists>& lists, const Poll& poll) {
  if (!lists) return Transformer(operations, std::move(config), tensors);
  const auto host = make_cpu_operations(0);
  const Listening listening(*host, poll);
  Config tried = config;
  tried.kept.clear();
  std::optional<Transformer> trial(std::in_place, *host, std::move(tried), tensors);
  for (const auto& [name, lost] : int8_losses(*trial, *lists, poll))
    if (lost > kMostLost) config.kept[name] = lost;
  if (!on_cpu) {
    trial.reset();  // both at once would take the host's memory twice
    return Transformer(operations, std::move(config), tensors);
  }
  if (config.kept.empty()) return std::move(*trial);
  size_t next = 0;
  return Transformer(operations, config, tensors, [&](const std::string& name) {
    const Weight& weight = *trial->weights()[next++];
    return config.kept.contains(name) ? Blob{} : weight.blob();
  });
}

// With `blobs`, what Transformer.blobs was, weights are read from those arrays in place and `tensors` is asked for no
// matrix. `file`: what they lie in. With `probe`, of int8 weights some may be kept in bf16, as its `spec` then says.
std::shared_ptr<Transformer> make_model(const py::dict& spec, const std::string& device, const py::function& tensors,
                                        const std::optional<std::vector<ByteArray>>& blobs,
                                        const std::shared_ptr<cpu::MappedFile>& file,
                                        const std::optional<ProbeLists>& probe) {
  const Config config = config_of(spec);
  const TensorSource source = tensor_source(config.name, tensors);
  const Backend backend = make_backend(device, 0);
  const Poll poll = SignalPoll();
  const Listening listening(*backend.operations, poll);
  if (!blobs)
    return std::make_shared<Transformer>(made(*backend.operations, device == "cpu", config, source, probe, poll));
  size_t next = 0;
  const BlobSource packed = [&](const std::string&) -> Blob {
    require(next < blobs->size(), config.name, ": there are only ", blobs->size(), " packed weights");
    const ByteArray& array = (*blobs)[next++];
    // The last to let go of the weights may be a thread that does not hold Python's lock.
    const std::shared_ptr<const ByteArray> owner(new ByteArray(array), [](const ByteArray* held) {
      py::gil_scoped_acquire lock;
      delete held;
    });
    return {std::as_bytes(std::span(array.data(), static_cast<size_t>(array.size()))), owner};
  };
  auto model = std::make_shared<Transformer>(*backend.operations, config, source, packed);
  if (file) {
    model->check_by([file] { file->check(); });
    model->check();
  }
  return model;
}

// The packed weights as arrays of bytes over the model's own memory, which they hold.
std::vector<ByteArray> blobs_of(const std::shared_ptr<Transformer>& model) {
  using Held = std::pair<std::shared_ptr<const Transformer>, std::shared_ptr<const void>>;
  const py::capsule owner(new Held(model, model->hold()), [](void* held) { delete static_cast<Held*>(held); });
  std::vector<ByteArray> blobs;
  for (const Weight* weight : model->weights()) {
    const auto bytes = weight->blob().bytes;
    blobs.emplace_back(bytes.size(), reinterpret_cast<const uint8_t*>(bytes.data()), owner);
    blobs.back().attr("setflags")(py::arg("write") = false);
  }
  return blobs;
}

// The decoder's raw logits [T, V] for one row, reading its tokens in passes of the given sizes.
FloatArray decode_logits(const Transformer& model, const std::string& device, const std::vector<int32_t>& source,
                         const std::vector<int32_t>& tokens, const std::vector<uint8_t>& marked,
                         const std::vector<int>& chunks, int threads) {
  const Backend backend = make_backend(device, threads);
  Operations& operations = *backend.operations;
  const int V = model.config().vocabulary, T = static_cast<int>(tokens.size());
  FloatArray out({T, V});
  ModelState state(model, 1, static_cast<int>(source.size()), T + 1);  // the last token is read, too
  Workspace work;
  const Poll poll = SignalPoll();
  const Listening listening(operations, poll);
  const int row = 0;
  model.open(operations, state, work, std::span(&row, 1), std::span(&source, 1), poll);
  int begin = 0;
  for (const int size : chunks) {
    std::vector<InputToken> pass;
    std::vector<int32_t> wanted;
    for (int i = 0; i < size; ++i) {
      pass.push_back({tokens[begin + i], 0, begin + i, marked.empty() ? uint8_t{0} : marked[begin + i]});
      wanted.push_back(i);
    }
    TokenLists lists;
    model.decode(operations, state, work, operations.place(model.list(state, pass, wanted, lists)), poll);
    Buffer logits = operations.allocate(static_cast<size_t>(size) * V);
    operations.linear(model.head(), work.gathered, size, logits.data, false);
    operations.download(std::span(out.mutable_data() + static_cast<size_t>(begin) * V, static_cast<size_t>(size) * V),
                        logits.data);
    begin += size;
  }
  model.check();
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
  py::class_<cpu::MappedFile, std::shared_ptr<cpu::MappedFile>>(m, "MappedFile")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def_property_readonly("bytes",
                             [](const std::shared_ptr<cpu::MappedFile>& file) {
                               const auto bytes = file->bytes();
                               ByteArray array(bytes.size(), reinterpret_cast<const uint8_t*>(bytes.data()),
                                               py::cast(file));
                               array.attr("setflags")(py::arg("write") = false);
                               return array;
                             })
      .def("check", &cpu::MappedFile::check);

  py::class_<Transformer, std::shared_ptr<Transformer>>(m, "Transformer")
      .def(py::init(&make_model), py::arg("spec"), py::arg("device"), py::arg("tensors"), py::arg("blobs") = py::none(),
           py::arg("file") = py::none(), py::arg("probe") = py::none())
      .def_property_readonly("spec", [](const Transformer& model) { return spec_of(model.config()); })
      .def_property_readonly("num_bytes", &Transformer::bytes)
      .def_property_readonly("blobs", &blobs_of)
      .def(
          "update",
          [](Transformer& model, const std::string& device, const py::function& tensors,
             const std::optional<ProbeLists>& probe) {
            const Backend backend = make_backend(device, 0);
            const Poll poll = SignalPoll();
            const Listening listening(*backend.operations, poll);
            const TensorSource source = tensor_source(model.config().name, tensors);
            Config config = model.config();
            config.kept.clear();
            model.update([&] { return made(*backend.operations, device == "cpu", config, source, probe, poll); });
          },
          py::arg("device"), py::arg("tensors"), py::arg("probe") = py::none())
      .def("decode_logits", &decode_logits, py::arg("device"), py::arg("source"), py::arg("tokens"), py::arg("marked"),
           py::arg("chunks"), py::arg("threads"));

  py::class_<Probe>(m, "Probe")
      .def(py::init([](const std::string& device, std::shared_ptr<Transformer> model, int rows, int source_tokens,
                       int history, int most_tokens, int threads) {
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
          py::arg("tokens"), py::arg("asked"), py::arg("repeats"));

  m.attr("packed_layout") = cpu::kPackedLayout;
}

}  // namespace kdtw
