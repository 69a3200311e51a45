// Decoders and their sessions in Python.
#include <pybind11/functional.h>
#include <pybind11/native_enum.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "bindings/bindings.h"
#include "core/error.h"
#include "decode/session.h"

namespace kdtw {
namespace {

// What stands before a row's outputs: its start token, or the whole prompt of a model without an encoder.
struct Layout {
  bool prompted;
  size_t width = 0;

  size_t before(const Row& row) const { return prompted ? row.sources[0].size() : 1; }
};

// One line a row: what get(row, t) gives for its outputs, t = 1, 2, …, behind what first(row, t) gives for the places t
// = 0, 1, … before them.
template <typename T, typename First, typename Get>
py::array_t<T> padded(const std::vector<Row>& rows, const Layout& shape, T fill, First&& first, Get&& get) {
  py::array_t<T> out({rows.size(), shape.width});
  auto view = out.template mutable_unchecked<2>();
  for (size_t r = 0; r < rows.size(); ++r) {
    const size_t before = shape.before(rows[r]), end = before + rows[r].outputs();
    for (size_t t = 0; t < before; ++t) view(r, t) = first(rows[r], t);
    for (size_t t = before; t < end; ++t) view(r, t) = get(rows[r], t - before + 1);
    for (size_t t = end; t < shape.width; ++t) view(r, t) = fill;
  }
  return out;
}
template <typename T, typename Get>
py::array_t<T> padded(const std::vector<Row>& rows, const Layout& shape, T fill, Get&& get) {
  return padded<T>(rows, shape, fill, [fill](const Row&, size_t) { return fill; }, std::forward<Get>(get));
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

// Part of a row's outputs; of none, where time ran out before the first, 0.
float share(std::ptrdiff_t some, const Row& row) { return row.outputs() > 0 ? float(some) / float(row.outputs()) : 0; }

// The rows as arrays with a leading axis; rows at fault are left out and named in "faults" as (index, what is wrong).
py::dict to_python(std::vector<Row> rows, const Session& session, int64_t pad) {
  const SessionOptions& options = session.options();
  const int teachers = session.teachers();
  py::list faults;
  std::erase_if(rows, [&](const Row& row) {
    if (row.finish != Finish::kFault) return false;
    faults.append(py::make_tuple(row.index, row.fault));
    return true;
  });
  Layout shape{session.prompted()};
  for (const auto& row : rows) shape.width = std::max(shape.width, shape.before(row) + row.outputs());
  py::dict out;
  out["faults"] = faults;
  out["index"] = per_row(rows, [](const Row& row) { return row.index; });
  out["finish"] = per_row(rows, [](const Row& row) { return int(row.finish); });
  out["sequences"] = padded<int64_t>(
      rows, shape, pad, [&](const Row& row, size_t t) { return shape.prompted ? row.sources[0][t] : row.tokens[t]; },
      [](const Row& row, size_t t) { return row.tokens[t]; });
  out["prompt_lengths"] = per_row(rows, [&](const Row& row) { return shape.before(row); });
  out["owners"] = padded<uint8_t>(rows, shape, 0, [](const Row& row, size_t t) { return uint8_t(row.owners[t]); });
  out["teacher_index"] = padded<uint8_t>(rows, shape, 0, [](const Row& row, size_t t) { return row.teacher_index[t]; });
  out["calls_by_teacher"] =
      per_teacher<int64_t>(rows, teachers, [](const Row& row, int k) { return row.own_calls[k - 1]; });
  out["fraction_by_teacher"] = per_teacher<float>(rows, teachers, [](const Row& row, int k) {
    return share(std::count(row.teacher_index.begin(), row.teacher_index.end(), k), row);
  });
  out["lengths"] = per_row(rows, [](const Row& row) { return row.outputs(); });
  out["teacher_calls"] = per_row(rows, [](const Row& row) { return row.calls; });
  out["teacher_fraction"] = per_row<float>(rows, [](const Row& row) {
    const auto written = std::count_if(row.owners.begin(), row.owners.end(), written_by_teacher);
    return share(written, row);
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
        padded<float>(rows, shape, nan, [](const Row& row, size_t t) { return row.student_log_probs[t]; });
    out["teacher_logprobs"] =
        padded<float>(rows, shape, nan, [](const Row& row, size_t t) { return row.teacher_log_probs[t]; });
  }
  if (const size_t count = options.top_count; count > 0) {
    py::array_t<int64_t> ids({rows.size(), shape.width, count});
    py::array_t<float> log_probs({rows.size(), shape.width, count});
    TopToken* const none = nullptr;
    for (size_t r = 0; r < rows.size(); ++r) {
      const size_t before = shape.before(rows[r]), end = before + rows[r].outputs();
      for (size_t t = 0; t < shape.width; ++t) {
        const bool is_output = t >= before && t < end;
        const TopToken* const top = is_output ? &rows[r].top[(t - before + 1) * count] : none;
        for (size_t i = 0; i < count; ++i) {
          ids.mutable_at(r, t, i) = top ? top[i].id : kNoTop.id;
          log_probs.mutable_at(r, t, i) = top ? top[i].log_prob : kNoTop.log_prob;
        }
      }
    }
    out["top_ids"] = ids;
    out["top_logprobs"] = log_probs;
  }
  return out;
}

py::dict run(Session& session, bool to_the_end, int64_t pad, const py::object& streamer, Bell* bell, bool one_turn) {
  SignalPoll signals;
  TokenStream stream;
  if (!streamer.is_none()) {
    stream = [&streamer](std::span<const SettledToken> settled) {
      py::gil_scoped_acquire lock;
      for (const auto& [row, position, token, owner] : settled) streamer(row, position, token, int(owner));
    };
  }
  std::vector<Row> rows;
  {
    py::gil_scoped_release unlocked;
    const Until until = to_the_end ? Until::kAllFinished : one_turn ? Until::kTurn : Until::kSomeFinished;
    rows = session.run(until, [&signals] { signals(); }, stream, bell);
  }
  return to_python(std::move(rows), session, pad);
}

Ledger make_ledger(py::object max_calls, py::object max_fraction) {
  Ledger ledger;
  if (!max_calls.is_none()) ledger.max_calls = max_calls.cast<int>();
  if (!max_fraction.is_none()) ledger.max_fraction = max_fraction.cast<double>();
  return ledger;
}

}  // namespace

void bind_decoders(py::module_& m) {
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
      .value("CASCADE", Check::kCascade)
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
      .def(py::init(&make_ledger), py::arg("max_calls") = py::none(), py::arg("max_fraction") = py::none());

  py::class_<TokenRules, std::shared_ptr<TokenRules>>(m, "TokenRules")
      .def(py::init([](const std::vector<std::pair<std::vector<int32_t>, float>>& sequences,
                       const std::vector<std::pair<int32_t, int32_t>>& early, float repetition_penalty,
                       int no_repeat_ngram, int forced_end, int last) {
             TokenRules rules;
             for (const auto& [tokens, bias] : sequences) rules.sequences.push_back({tokens, bias});
             for (const auto& [id, until] : early) rules.early.push_back({id, until});
             rules.repetition_penalty = repetition_penalty, rules.no_repeat_ngram = no_repeat_ngram;
             rules.forced_end = forced_end, rules.last = last;
             return rules;
           }),
           py::kw_only(), py::arg("sequences"), py::arg("early"), py::arg("repetition_penalty"),
           py::arg("no_repeat_ngram"), py::arg("forced_end"), py::arg("last"));

  py::class_<Stops>(m, "Stops")
      .def(py::init([](std::vector<int32_t> tokens, const py::object& find) {
             if (find.is_none()) return Stops{std::move(tokens), nullptr};
             // Rows are copied and dropped by threads that do not hold Python's lock.
             const auto drop = [](const FindStop* function) {
               py::gil_scoped_acquire lock;
               delete function;
             };
             auto* const call = new FindStop([find](std::span<const int32_t> outputs) {
               py::gil_scoped_acquire lock;
               return find(std::vector<int32_t>(outputs.begin(), outputs.end())).cast<int>();
             });
             return Stops{std::move(tokens), std::shared_ptr<const FindStop>(call, drop)};
           }),
           py::arg("tokens"), py::arg("find") = py::none());

  py::class_<SpecialTokens>(m, "SpecialTokens")
      .def(py::init([](int32_t start, std::vector<int32_t> end, std::vector<int32_t> tau) {
             return SpecialTokens{start, std::move(end), std::move(tau)};
           }),
           py::arg("start"), py::arg("end"), py::arg("tau") = std::vector<int32_t>());

  py::class_<Decoder, std::shared_ptr<Decoder>>(m, "Decoder")
      .def(py::init([](const std::string& device, std::shared_ptr<Transformer> student,
                       const std::optional<std::vector<std::shared_ptr<Transformer>>>& teachers, MethodRules method,
                       SpecialTokens special) {
             require(!method.two_models || !method.teacher_alone, "a teacher alone is a method of one model");
             const size_t n = teachers ? teachers->size() : 0;
             const size_t told = std::clamp<size_t>(n, 1, std::max<size_t>(1, special.tau.size()));
             const size_t asked = method.call.on_tau ? told : method.two_models ? 1 : 0;
             require(n == asked, "this method asks ", asked, " teachers, got ", n);
             Decoder decoder{device, std::move(student), {}, method, std::move(special), 0};
             if (teachers) decoder.teachers.assign(teachers->begin(), teachers->end());
             decoder.vocabulary = decoder.student->config().vocabulary;
             for (const auto& teacher : decoder.teachers)
               decoder.vocabulary = std::min(decoder.vocabulary, teacher->config().vocabulary);
             return decoder;
           }),
           py::arg("device"), py::arg("student"), py::arg("teachers"), py::arg("method"), py::arg("special"));

  py::class_<RowOptions>(m, "RowOptions")
      .def(py::init([](int max_new_tokens, int min_new_tokens, Sampling student, Sampling teacher, uint64_t seed,
                       double max_seconds, std::shared_ptr<TokenRules> rules, Stops stops,
                       std::vector<int32_t> forced_tokens) {
             return RowOptions{
                 max_new_tokens,   min_new_tokens,          student, teacher, seed, max_seconds, std::move(rules),
                 std::move(stops), std::move(forced_tokens)};
           }),
           py::kw_only(), py::arg("max_new_tokens"), py::arg("min_new_tokens"), py::arg("student_sampling"),
           py::arg("teacher_sampling"), py::arg("seed"), py::arg("max_seconds"), py::arg("rules") = py::none(),
           py::arg("stops") = Stops(), py::arg("forced_tokens") = std::vector<int32_t>());

  py::class_<SessionOptions>(m, "SessionOptions")
      .def(py::init([](const RowOptions& row, int teacher_batch, bool want_log_probs, bool want_reads, int threads,
                       int top_count) {
             return SessionOptions{row, teacher_batch, want_log_probs, want_reads, top_count, threads};
           }),
           py::kw_only(), py::arg("row"), py::arg("teacher_batch"), py::arg("want_log_probs"), py::arg("want_reads"),
           py::arg("threads"), py::arg("top_count") = 0);

  py::class_<Bell>(m, "Bell").def(py::init<>()).def("ring", &Bell::ring).def("clear", &Bell::clear);

  py::class_<Session>(m, "Session")
      .def(py::init([](std::shared_ptr<Decoder> decoder, SessionOptions options, int slots, int source_capacity) {
             return std::make_unique<Session>(std::move(decoder), std::move(options), slots, source_capacity);
           }),
           py::arg("decoder"), py::arg("options"), py::arg("slots"), py::arg("source_capacity"))
      .def("add", &Session::add, py::arg("key"), py::arg("ledger"), py::arg("student_source"),
           py::arg("teacher_sources"), py::arg("own_ledgers") = std::vector<Ledger>(), py::arg("options") = py::none())
      .def("drop", &Session::drop, py::arg("index"))
      .def("run", &run, py::arg("to_the_end"), py::arg("pad"), py::arg("streamer"), py::arg("bell") = py::none(),
           py::arg("one_turn") = false)
      .def_property_readonly("free_slots", &Session::free_slots)
      .def_property_readonly("student_passes", [](const Session& s) { return s.totals().student_passes; })
      .def_property_readonly("teacher_passes", [](const Session& s) { return s.totals().teacher_passes; })
      .def_property_readonly("seconds", [](const Session& session) {
        const Totals t = session.totals();
        return py::make_tuple(t.encode_seconds, t.student_seconds, t.teacher_seconds, t.other_seconds);
      });
}

}  // namespace kdtw
