// A backend's operations on NumPy arrays, for the tests that compare devices operation by operation.
#include "bindings_operations.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "core/error.h"

namespace py = pybind11;

namespace kdtw {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

DType dtype_of(const std::string& name) {
  if (name == "fp32") return DType::kFp32;
  if (name == "fp16") return DType::kFp16;
  if (name == "bf16") return DType::kBf16;
  require(name == "int8", "unknown dtype '", name, "'");
  return DType::kInt8;
}

class Operations {
 public:
  explicit Operations(const std::string& device) : backend_(make_backend(device, 1)) {}

  Floats embed(const Floats& table, const std::vector<int32_t>& ids, const std::vector<uint8_t>& marked,
               const Floats& mark, const std::string& dtype) {
    const auto weight = pack(table, dtype);
    const Buffer beta = sent(mark), out = made(ids.size() * table.shape(1));
    const PassTokens placed = backend_->place({ids, marked, {}, {}, {}});
    backend_->embed(*weight, placed.ids, placed.marked, beta.data, out.data);
    return fetched(out, {static_cast<py::ssize_t>(ids.size()), table.shape(1)});
  }

  Floats rms_norm(const Floats& x, const Floats& scale, float epsilon) {
    const Buffer input = sent(x), factors = sent(scale), out = made(x.size());
    backend_->rms_norm(input.data, factors.data, epsilon, rows(x), columns(x), out.data);
    return fetched(out, {x.shape(0), x.shape(1)});
  }

  // add_to: what the product is added to; empty = nothing. encoder: the weight is an encoder's.
  Floats linear(const Floats& weight, const Floats& x, const std::string& dtype, const Floats& add_to, bool encoder) {
    const auto packed = pack(weight, dtype, encoder);
    const bool adds = add_to.size() > 0;
    const Buffer input = sent(x), out = adds ? sent(add_to) : made(x.shape(0) * weight.shape(0));
    backend_->linear(*packed, input.data, rows(x), out.data, adds);
    return fetched(out, {x.shape(0), weight.shape(0)});
  }

  Floats norm_linear(const Floats& weight, const Floats& x, const Floats& scale, float epsilon,
                     const std::string& dtype, bool encoder) {
    const auto packed = pack(weight, dtype, encoder);
    const Buffer input = sent(x), factors = sent(scale), normed = made(x.size());
    const Buffer out = made(x.shape(0) * weight.shape(0));
    backend_->norm_linear(*packed, input.data, factors.data, epsilon, rows(x), normed.data, out.data);
    return fetched(out, {x.shape(0), weight.shape(0)});
  }

  Floats norm_linear_activate(const Floats& weight, const Floats& x, const Floats& scale, float epsilon, bool gated,
                              const std::string& dtype, bool encoder) {
    const auto packed = pack(weight, dtype, encoder);
    const py::ssize_t outputs = weight.shape(0) / (gated ? 2 : 1);
    const Buffer input = sent(x), factors = sent(scale), normed = made(x.size());
    const Buffer hidden = made(x.shape(0) * weight.shape(0)), out = made(x.shape(0) * outputs);
    backend_->norm_linear_activate(*packed, gated ? Activation::kGatedGelu : Activation::kRelu, input.data,
                                   factors.data, epsilon, rows(x), normed.data, hidden.data, out.data);
    return fetched(out, {x.shape(0), outputs});
  }

  Floats activate(const Floats& hidden, bool gated) {
    const py::ssize_t size = hidden.shape(1) / (gated ? 2 : 1);
    const Buffer input = sent(hidden), out = made(hidden.shape(0) * size);
    backend_->activate(gated ? Activation::kGatedGelu : Activation::kRelu, input.data, rows(hidden),
                       static_cast<int>(size), out.data);
    return fetched(out, {hidden.shape(0), size});
  }

  // Stores keys and values [n, H*D] at stored [n, 2] = (row, position), then attends with queries [T, H*D] at asked
  // [T, 3] = (row, position, length). bias [H, lowest + highest + 1]; empty = none.
  Floats attend(int cache_rows, int capacity, int heads, const std::string& dtype,
                const std::vector<std::array<int32_t, 2>>& stored, const Floats& keys, const Floats& values,
                const std::vector<std::array<int32_t, 3>>& asked, const Floats& queries, const Floats& bias,
                int lowest) {
    const int width = columns(keys), size = width / heads;
    const auto cache = backend_->make_cache(cache_rows, heads, size, capacity, dtype_of(dtype));
    const Buffer k = sent(keys), v = sent(values), q = sent(queries), table = sent(bias);
    const Buffer out = made(queries.size());
    std::vector<TokenAt> places, tokens;
    for (const auto& [row, position] : stored) places.push_back({row, position, position + 1});
    for (const auto& [row, position, length] : asked) tokens.push_back({row, position, length});
    backend_->store(*cache, backend_->place({{}, {}, places, {}, {}}).self, k.data, v.data, width);
    const PositionBias view{table.data, lowest, bias.size() > 0 ? columns(bias) - 1 - lowest : 0};
    const PassTokens asking = backend_->place({{}, {}, tokens, {}, {}});
    backend_->attend(*cache, asking.self, q.data, width, bias.size() > 0 ? &view : nullptr, out.data);
    return fetched(out, {queries.shape(0), queries.shape(1)});
  }

  Floats gather(const Floats& x, const std::vector<int32_t>& indices) {
    const Buffer input = sent(x), out = made(indices.size() * x.shape(1));
    backend_->gather(input.data, backend_->place({{}, {}, {}, {}, indices}).wanted, columns(x), out.data);
    return fetched(out, {static_cast<py::ssize_t>(indices.size()), x.shape(1)});
  }

  // Each request is a dict of PickRequest's fields, `temperature`, `top_k`, `top_p` and the draft's `draft_…` beside
  // them; returns ([(id, passed, finite, log_prob, confidence, entropy)], logits [n, V]).
  py::tuple pick(const Floats& head, const Floats& hidden, const std::vector<py::dict>& asked,
                 const std::string& dtype) {
    const auto weight = pack(head, dtype);
    const Buffer input = sent(hidden), kept = made(asked.size() * head.shape(0));
    std::vector<std::vector<int32_t>> lists;
    lists.reserve(2 * asked.size());
    std::vector<Buffer> drafts;
    std::vector<PickRequest> requests;
    for (const auto& fields : asked) {
      const auto get = [&](const char* name, auto otherwise) {
        return fields.contains(name) ? fields[name].cast<decltype(otherwise)>() : otherwise;
      };
      PickRequest request;
      request.sampling = {get("temperature", 0.0f), get("top_k", 0), get("top_p", 1.0f)};
      request.draft_sampling = {get("draft_temperature", 0.0f), get("draft_top_k", 0), get("draft_top_p", 1.0f)};
      request.uniform = get("uniform", 0.0);
      request.accept_uniform = get("accept_uniform", 0.0);
      request.check = get("check", Check::kNone);
      request.draft = get("draft", -1);
      request.threshold = get("threshold", 0.0);
      request.banned = lists.emplace_back(get("banned", std::vector<int32_t>()));
      request.draft_banned = lists.emplace_back(get("draft_banned", std::vector<int32_t>()));
      if (fields.contains("draft_logits")) {
        const auto logits = fields["draft_logits"].cast<Floats>();
        request.draft_logits = drafts.emplace_back(sent(logits)).data;
        request.draft_vocabulary = static_cast<int>(logits.size());
      }
      request.keep_logits = kept.data + requests.size() * head.shape(0);
      request.want_log_prob = get("want_log_prob", false);
      request.want_confidence = get("want_confidence", false);
      request.want_entropy = get("want_entropy", false);
      requests.push_back(request);
    }
    std::vector<PickResult> results(requests.size());
    backend_->pick(*weight, input.data, requests, results);
    py::list out;
    for (const auto& r : results)
      out.append(py::make_tuple(r.id, r.passed, r.finite, r.log_prob, r.confidence, r.entropy));
    return py::make_tuple(out, fetched(kept, {static_cast<py::ssize_t>(asked.size()), head.shape(0)}));
  }

 private:
  static int rows(const Floats& x) { return static_cast<int>(x.shape(0)); }
  static int columns(const Floats& x) { return static_cast<int>(x.shape(1)); }

  std::unique_ptr<Weight> pack(const Floats& matrix, const std::string& dtype, bool encoder = false) {
    const float* part = matrix.data();
    const int outputs = rows(matrix);
    return backend_->pack({&part, 1}, {&outputs, 1}, columns(matrix), dtype_of(dtype),
                          encoder ? WeightRole::kEncoder : WeightRole::kDecoder);
  }
  Buffer made(py::ssize_t floats) { return backend_->allocate(static_cast<size_t>(floats)); }
  Buffer sent(const Floats& values) {
    Buffer buffer = made(values.size());
    backend_->upload(buffer, std::span(values.data(), static_cast<size_t>(values.size())));
    return buffer;
  }
  Floats fetched(const Buffer& from, std::vector<py::ssize_t> shape) {
    Floats out(shape);
    backend_->download(std::span(out.mutable_data(), static_cast<size_t>(out.size())), from.data);
    return out;
  }

  const std::unique_ptr<Backend> backend_;
};

}  // namespace

void bind_operations(py::module_& m) {
  py::class_<Operations>(m, "Operations")
      .def(py::init<const std::string&>(), py::arg("device"))
      .def("embed", &Operations::embed, py::arg("table"), py::arg("ids"), py::arg("marked"), py::arg("mark"),
           py::arg("dtype"))
      .def("rms_norm", &Operations::rms_norm, py::arg("x"), py::arg("scale"), py::arg("epsilon"))
      .def("linear", &Operations::linear, py::arg("weight"), py::arg("x"), py::arg("dtype"), py::arg("add_to"),
           py::arg("encoder") = false)
      .def("norm_linear", &Operations::norm_linear, py::arg("weight"), py::arg("x"), py::arg("scale"),
           py::arg("epsilon"), py::arg("dtype"), py::arg("encoder") = false)
      .def("norm_linear_activate", &Operations::norm_linear_activate, py::arg("weight"), py::arg("x"), py::arg("scale"),
           py::arg("epsilon"), py::arg("gated"), py::arg("dtype"), py::arg("encoder") = false)
      .def("activate", &Operations::activate, py::arg("hidden"), py::arg("gated"))
      .def("attend", &Operations::attend, py::arg("cache_rows"), py::arg("capacity"), py::arg("heads"),
           py::arg("dtype"), py::arg("stored"), py::arg("keys"), py::arg("values"), py::arg("asked"),
           py::arg("queries"), py::arg("bias"), py::arg("lowest"))
      .def("gather", &Operations::gather, py::arg("x"), py::arg("indices"))
      .def("pick", &Operations::pick, py::arg("head"), py::arg("hidden"), py::arg("requests"), py::arg("dtype"));
}

}  // namespace kdtw
