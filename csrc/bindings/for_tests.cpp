// What only tests, kdtw selftest and benchmarks want: a device's operations on NumPy arrays, random numbers, choices
// that nobody else makes, and methods of classes that are bound elsewhere.
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "backend/cpu/simd_levels.h"
#include "backend/cuda/library.h"
#include "backend/cuda/runner.h"
#include "backend/runner.h"
#include "bindings/bindings.h"
#include "core/draft.h"
#include "decode/probe.h"
#include "decode/rules.h"
#include "model/transformer.h"

namespace kdtw {
namespace {

class OperationsForTests {
 public:
  OperationsForTests(const std::string& device, int threads)
      : backend_(make_backend(device, threads)), operations_(*backend_.operations) {}

  // positions: a table, of which token t has row t + 1; empty = none.
  FloatArray embed(const FloatArray& table, const std::vector<int32_t>& ids, const std::vector<uint8_t>& marked,
                   const FloatArray& mark, const std::string& dtype, float scale, const FloatArray& positions) {
    const auto weight = pack(table, dtype);
    const Buffer beta = sent(mark), of_places = sent(positions), out = made(ids.size() * table.shape(1));
    std::vector<TokenAt> places;
    for (int32_t t = 0; t < static_cast<int32_t>(ids.size()); ++t) places.push_back({0, t, t + 1});
    const PassTokens placed = operations_.place({ids, marked, places, {}, {}});
    operations_.embed({.table = weight.get(),
                       .scale = scale,
                       .mark = beta.data,
                       .positions = positions.size() > 0 ? of_places.data : nullptr,
                       .first_position = 1},
                      placed, out.data);
    return fetched(out, {static_cast<py::ssize_t>(ids.size()), table.shape(1)});
  }

  // An RMS norm; with a shift that is not empty, a layer norm. add_to: what it is added to; empty = it is made in
  // place.
  FloatArray norm(const FloatArray& x, const FloatArray& scale, float epsilon, const FloatArray& shift,
                  const FloatArray& add_to) {
    const bool adds = add_to.size() > 0;
    const Buffer input = sent(x), factors = sent(scale), shifts = sent(shift), out = adds ? sent(add_to) : input;
    operations_.norm(norm_of(factors, epsilon, shifts), input.data, rows(x), columns(x), out.data, adds);
    return fetched(out, {x.shape(0), x.shape(1)});
  }

  // add_to: what the product is added to; empty = nothing. encoder: the weight is an encoder's. bias: empty = none.
  FloatArray linear(const FloatArray& weight, const FloatArray& x, const std::string& dtype, const FloatArray& add_to,
                    bool encoder, const FloatArray& bias, float cap) {
    const auto packed = pack(weight, dtype, encoder);
    if (bias.size() > 0) packed->bias = sent(bias);
    packed->cap = cap;
    const bool adds = add_to.size() > 0;
    const Buffer input = sent(x), out = adds ? sent(add_to) : made(x.shape(0) * weight.shape(0));
    operations_.linear(*packed, input.data, rows(x), out.data, adds);
    return fetched(out, {x.shape(0), weight.shape(0)});
  }

  FloatArray norm_linear(const FloatArray& weight, const FloatArray& x, const FloatArray& scale, float epsilon,
                         const std::string& dtype, bool encoder, const FloatArray& shift) {
    const auto packed = pack(weight, dtype, encoder);
    const Buffer input = sent(x), factors = sent(scale), shifts = sent(shift), normed = made(x.size());
    const Buffer out = made(x.shape(0) * weight.shape(0));
    operations_.norm_linear(*packed, input.data, norm_of(factors, epsilon, shifts), rows(x), normed.data, out.data);
    return fetched(out, {x.shape(0), weight.shape(0)});
  }

  FloatArray norm_linear_activate(const FloatArray& weight, const FloatArray& x, const FloatArray& scale, float epsilon,
                                  bool gated, const std::string& dtype, bool encoder, int function,
                                  const FloatArray& bias) {
    const auto packed = pack(weight, dtype, encoder);
    if (bias.size() > 0) packed->bias = sent(bias);
    const py::ssize_t outputs = weight.shape(0) / (gated ? 2 : 1);
    const Buffer input = sent(x), factors = sent(scale), normed = made(x.size());
    const Buffer hidden = made(x.shape(0) * weight.shape(0)), out = made(x.shape(0) * outputs);
    operations_.norm_linear_activate(*packed, activation(function, gated), input.data, norm_of(factors, epsilon, {}),
                                     rows(x), normed.data, hidden.data, out.data);
    return fetched(out, {x.shape(0), outputs});
  }

  FloatArray activate(const FloatArray& hidden, bool gated, int function) {
    const py::ssize_t size = hidden.shape(1) / (gated ? 2 : 1);
    const Buffer input = sent(hidden), out = made(hidden.shape(0) * size);
    operations_.activate(activation(function, gated), input.data, rows(hidden), static_cast<int>(size), out.data);
    return fetched(out, {hidden.shape(0), size});
  }

  // Queries x [T, heads * size], normed by `scale` [size] (empty = not) and turned by `positions` [T].
  FloatArray turn_heads(const FloatArray& x, int heads, const FloatArray& scale, float epsilon,
                        const std::vector<int32_t>& positions, const FloatArray& frequencies, float rotary_scale) {
    const int pairs = static_cast<int>(frequencies.size()), tokens = rows(x);
    const Buffer input = sent(x), factors = sent(scale), of_pairs = sent(frequencies);
    const Buffer angles = made(static_cast<py::ssize_t>(2) * pairs * tokens);
    std::vector<TokenAt> places;
    for (const int32_t position : positions) places.push_back({0, position, position + 1});
    const PassTokens placed = operations_.place({{}, {}, places, {}, {}});
    operations_.angles({of_pairs.data, pairs, rotary_scale}, placed.self, angles.data);
    Norm norm = norm_of(factors, epsilon, {});
    if (scale.size() == 0) norm.scale = nullptr;
    operations_.turn_heads(input.data, columns(x), tokens, heads, columns(x) / heads, norm, angles.data, pairs);
    return fetched(input, {x.shape(0), x.shape(1)});
  }

  // Stores keys and values [n, H*D] at stored [n, 2] = (row, position), then attends with queries [T, sharing*H*D] at
  // asked [T, 3] = (row, position, length). bias [sharing*H, lowest + highest + 1]; empty = none. copies [n, 3] =
  // (from, to, positions): rows that are copied in between.
  FloatArray attend(int cache_rows, int capacity, int heads, const std::string& dtype,
                    const std::vector<std::array<int32_t, 2>>& stored, const FloatArray& keys, const FloatArray& values,
                    const std::vector<std::array<int32_t, 3>>& asked, const FloatArray& queries, const FloatArray& bias,
                    int lowest, float scale, float cap, int window, const std::vector<std::array<int32_t, 3>>& copies) {
    const int width = columns(keys), size = width / heads;
    const auto cache = operations_.make_cache(cache_rows, heads, size, capacity, parse_dtype(dtype));
    const Buffer k = sent(keys), v = sent(values), q = sent(queries), table = sent(bias);
    const Buffer out = made(queries.size());
    std::vector<TokenAt> places, tokens;
    for (const auto& [row, position] : stored) places.push_back({row, position, position + 1});
    for (const auto& [row, position, length] : asked) tokens.push_back({row, position, length});
    operations_.store(*cache, operations_.place({{}, {}, places, {}, {}}).self, k.data, v.data, width);
    for (const auto& [from, to, positions] : copies) operations_.copy(*cache, from, to, positions);
    AttentionRule rule{.heads = columns(queries) / size, .scale = scale, .cap = cap, .window = window};
    if (bias.size() > 0) rule.bias = {table.data, lowest, columns(bias) - 1 - lowest};
    const PassTokens asking = operations_.place({{}, {}, tokens, {}, {}});
    operations_.attend(*cache, asking.self, q.data, columns(queries), rule, out.data);
    return fetched(out, {queries.shape(0), queries.shape(1)});
  }

  FloatArray gather(const FloatArray& x, const std::vector<int32_t>& indices) {
    const Buffer input = sent(x), out = made(indices.size() * x.shape(1));
    operations_.gather(input.data, operations_.place({{}, {}, {}, {}, indices}).wanted, columns(x), out.data);
    return fetched(out, {static_cast<py::ssize_t>(indices.size()), x.shape(1)});
  }

  // Each request is a dict of PickRequest's fields, `temperature`, `top_k`, `top_p` and the draft's `draft_…` beside
  // them; returns ([(id, passed, finite, log_prob, confidence, entropy)], logits [n, V]).
  py::tuple pick(const FloatArray& head, const FloatArray& hidden, const std::vector<py::dict>& asked,
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
      request.threshold = asked_threshold(request.check, get("threshold", 0.0));
      const auto& banned = lists.emplace_back(get("banned", std::vector<int32_t>()));
      request.banned = banned.data(), request.banned_count = static_cast<int32_t>(banned.size());
      const auto& draft_banned = lists.emplace_back(get("draft_banned", std::vector<int32_t>()));
      request.draft_banned = draft_banned.data();
      request.draft_banned_count = static_cast<int32_t>(draft_banned.size());
      if (fields.contains("draft_logits")) {
        const auto logits = fields["draft_logits"].cast<FloatArray>();
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
    operations_.pick(*weight, input.data, requests, results);
    py::list out;
    for (const auto& r : results)
      out.append(py::make_tuple(r.id, r.passed != 0, r.finite != 0, r.log_prob, r.confidence, r.entropy));
    return py::make_tuple(out, fetched(kept, {static_cast<py::ssize_t>(asked.size()), head.shape(0)}));
  }

  // One draft by a runner whose decoder gives every token the same hidden state, so that what rows pick is left to the
  // random numbers: row i begins at output positions[i], may pick stops[s] from output first_allowed[i][s] on, and be
  // called at random from first_calls[i] on. Returns where each row stands, the output that it is at, and the ids
  // picked.
  py::list draft(const FloatArray& head, const FloatArray& hidden, const std::vector<std::array<int32_t, 2>>& stops,
                 const std::vector<std::vector<int32_t>>& first_allowed, const std::vector<int32_t>& positions,
                 const std::vector<int32_t>& first_calls, const std::vector<int32_t>& waiting, int batch, int outputs,
                 double max_uniform, uint64_t seed) {
    const auto weight = pack(head, "fp32");
    const Buffer state = sent(hidden);
    std::vector<StopToken> known;
    for (const auto& [id, teacher] : stops) known.push_back({id, teacher});
    DraftRules rules;
    rules.stops = known.data(), rules.stop_count = static_cast<int32_t>(known.size());
    rules.max_uniform = max_uniform;
    rules.teachers = static_cast<int32_t>(waiting.size());
    rules.vocabulary = rows(head);
    DraftPause pause;
    std::copy(waiting.begin(), waiting.end(), pause.waiting);
    pause.batch = batch;
    std::vector<DraftRow> drafting(positions.size());
    std::vector<int32_t> ids(positions.size()), wanted;
    std::vector<TokenAt> places;
    for (int i = 0; i < static_cast<int>(positions.size()); ++i) {
      drafting[i].row = i, drafting[i].seed = seed, drafting[i].key = i, drafting[i].position = positions[i];
      drafting[i].sampling.temperature = 1.0f, drafting[i].most_outputs = drafting[i].most_drafted = outputs;
      drafting[i].first_allowed = first_allowed[i].data(), drafting[i].first_call = first_calls[i];
      places.push_back({i, positions[i], positions[i] + 1});
      wanted.push_back(i);
    }
    const auto runner = backend_.make_runner(
        [&](int) -> DecoderPass { return [&](const PassTokens&, const Poll&) { return state.data; }; }, *weight,
        static_cast<int>(positions.size()));
    Picks picks;
    runner->draft(drafting, rules, pause, {ids, {}, places, places, wanted}, picks, [] {});
    py::list out;
    for (size_t i = 0; i < drafting.size(); ++i) {
      std::vector<int32_t> picked;
      for (const PickResult& pick : picks[i]) picked.push_back(pick.id);
      out.append(py::make_tuple(drafting[i].stand, drafting[i].position, picked));
    }
    return out;
  }

 private:
  static Norm norm_of(const Buffer& scale, float epsilon, const Buffer& shift) {
    const bool centred = shift.size > 0;
    return {scale.data, centred ? shift.data : nullptr, epsilon, centred};
  }
  // function: its number; -1: what T5 has.
  static Activation activation(int function, bool gated) {
    if (function < 0) return {gated ? Function::kGeluTanh : Function::kRelu, gated};
    return {static_cast<Function>(function), gated};
  }
  static int rows(const FloatArray& x) { return static_cast<int>(x.shape(0)); }
  static int columns(const FloatArray& x) { return static_cast<int>(x.shape(1)); }

  std::unique_ptr<Weight> pack(const FloatArray& matrix, const std::string& dtype, bool encoder = false) {
    const float* part = matrix.data();
    const int outputs = rows(matrix);
    return operations_.pack({&part, 1}, {&outputs, 1}, columns(matrix), parse_dtype(dtype),
                            encoder ? WeightRole::kEncoder : WeightRole::kDecoder);
  }
  Buffer made(py::ssize_t floats) { return operations_.allocate(static_cast<size_t>(floats)); }
  Buffer sent(const FloatArray& values) {
    Buffer buffer = made(values.size());
    operations_.upload(buffer, std::span(values.data(), static_cast<size_t>(values.size())));
    return buffer;
  }
  FloatArray fetched(const Buffer& from, std::vector<py::ssize_t> shape) {
    FloatArray out(shape);
    operations_.download(std::span(out.mutable_data(), static_cast<size_t>(out.size())), from.data);
    return out;
  }

  const Backend backend_;
  Operations& operations_;
};

}  // namespace

void bind_for_tests(py::module_& m) {
  const FloatArray nothing(0);
  py::class_<OperationsForTests>(m, "Operations")
      .def(py::init<const std::string&, int>(), py::arg("device"), py::arg("threads") = 1)
      .def("embed", &OperationsForTests::embed, py::arg("table"), py::arg("ids"), py::arg("marked"), py::arg("mark"),
           py::arg("dtype"), py::arg("scale") = 1.0f, py::arg("positions") = nothing)
      .def("norm", &OperationsForTests::norm, py::arg("x"), py::arg("scale"), py::arg("epsilon"),
           py::arg("shift") = nothing, py::arg("add_to") = nothing)
      .def("linear", &OperationsForTests::linear, py::arg("weight"), py::arg("x"), py::arg("dtype"), py::arg("add_to"),
           py::arg("encoder") = false, py::arg("bias") = nothing, py::arg("cap") = 0.0f)
      .def("norm_linear", &OperationsForTests::norm_linear, py::arg("weight"), py::arg("x"), py::arg("scale"),
           py::arg("epsilon"), py::arg("dtype"), py::arg("encoder") = false, py::arg("shift") = nothing)
      .def("norm_linear_activate", &OperationsForTests::norm_linear_activate, py::arg("weight"), py::arg("x"),
           py::arg("scale"), py::arg("epsilon"), py::arg("gated"), py::arg("dtype"), py::arg("encoder") = false,
           py::arg("function") = -1, py::arg("bias") = nothing)
      .def("activate", &OperationsForTests::activate, py::arg("hidden"), py::arg("gated"), py::arg("function") = -1)
      .def("turn_heads", &OperationsForTests::turn_heads, py::arg("x"), py::arg("heads"), py::arg("scale"),
           py::arg("epsilon"), py::arg("positions"), py::arg("frequencies"), py::arg("rotary_scale"))
      .def("attend", &OperationsForTests::attend, py::arg("cache_rows"), py::arg("capacity"), py::arg("heads"),
           py::arg("dtype"), py::arg("stored"), py::arg("keys"), py::arg("values"), py::arg("asked"),
           py::arg("queries"), py::arg("bias"), py::arg("lowest"), py::arg("scale") = 1.0f, py::arg("cap") = 0.0f,
           py::arg("window") = 0, py::arg("copies") = std::vector<std::array<int32_t, 3>>())
      .def("gather", &OperationsForTests::gather, py::arg("x"), py::arg("indices"))
      .def("pick", &OperationsForTests::pick, py::arg("head"), py::arg("hidden"), py::arg("requests"), py::arg("dtype"))
      .def("draft", &OperationsForTests::draft, py::arg("head"), py::arg("hidden"), py::arg("stops"),
           py::arg("first_allowed"), py::arg("positions"), py::arg("first_calls"), py::arg("waiting"), py::arg("batch"),
           py::arg("outputs"), py::arg("max_uniform"), py::arg("seed"));
  const auto method = [&m](const char* type, const char* name, auto&& function, auto&&... arguments) {
    const py::object owner = m.attr(type);
    owner.attr(name) = py::cpp_function(function, py::name(name), py::is_method(owner), arguments...);
  };
  method("Ledger", "allows", &Ledger::allows, py::arg("calls"), py::arg("position"));
  method("Ledger", "first_replaceable", &Ledger::first_replaceable, py::arg("calls"), py::arg("position"));
  method("Probe", "cache_bytes", &Probe::cache_bytes);
  method(
      "Transformer", "int8_losses",
      [](const Transformer& model, const std::pair<std::vector<int32_t>, std::vector<int32_t>>& probe) {
        const Poll poll = SignalPoll();
        const py::gil_scoped_release unlocked;
        return model.int8_losses({probe.first, probe.second}, poll);
      },
      py::arg("probe"));
  m.def(
      "uniform",
      [](uint64_t seed, uint64_t row, uint32_t position, uint32_t stream) {
        return uniform(seed, row, position, static_cast<RandomStream>(stream));
      },
      py::arg("seed"), py::arg("row"), py::arg("position"), py::arg("stream"));
  m.def("call_now", &call_now, py::arg("waiting"), py::arg("drafting"), py::arg("batch"));
  m.def("set_simd", &cpu::set_simd, py::arg("level"));
  m.def("use_cuda_library", &cuda::use_library, py::arg("path"));
  m.def("use_cuda_drafting", &cuda::use_drafting, py::arg("how"), py::arg("steps"));
}

}  // namespace kdtw
