// The CPU kernels, written once over a vector type `V` that the including file defines together with
// kWidth, kFp32Rows and load/store/set1/add/sub/mul/fma/max/less/... No contraction is left to the
// compiler (-ffp-contract=off): every fused multiply-add below is written as one, so that the same
// source gives the same bits in every instantiation of a template.
// Included inside an anonymous namespace; must not include or define anything shared between files.

void rms_norm(const float* x, const float* scale, const float*, float epsilon, int size, float* out) {
  V squares = zero();
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const V v = load(x + i);
    squares = fma(v, v, squares);
  }
  float sum = sum_lanes(squares);
  for (; i < size; ++i) sum += x[i] * x[i];
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + epsilon);
  const V factor = set1(inverse);
  for (i = 0; i + kWidth <= size; i += kWidth) store(out + i, mul(mul(load(x + i), factor), load(scale + i)));
  for (; i < size; ++i) out[i] = x[i] * inverse * scale[i];
}

void layer_norm(const float* x, const float* scale, const float* shift, float epsilon, int size, float* out) {
  V totals = zero();
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) totals = add(totals, load(x + i));
  float sum = sum_lanes(totals);
  for (; i < size; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(size);
  const V middle = set1(mean);
  V squares = zero();
  for (i = 0; i + kWidth <= size; i += kWidth) {
    const V v = sub(load(x + i), middle);
    squares = fma(v, v, squares);
  }
  float variance = sum_lanes(squares);
  for (; i < size; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / __builtin_sqrtf(variance / static_cast<float>(size) + epsilon);
  for (i = 0; i < size; ++i) out[i] = (x[i] - mean) * inverse * scale[i] + (shift ? shift[i] : 0.0f);
}

// Applies `function` to whole vectors and once more to a padded copy of the tail.
template <typename Function>
inline void map(int size, float* out, const Function& function, const float* a, const float* b) {
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) store(out + i, function(load(a + i), load(b + i)));
  if (i < size) {
    float ta[kWidth] = {}, tb[kWidth] = {}, to[kWidth];
    for (int j = 0; i + j < size; ++j) ta[j] = a[i + j], tb[j] = b[i + j];
    store(to, function(load(ta), load(tb)));
    for (int j = 0; i + j < size; ++j) out[i + j] = to[j];
  }
}

// Function objects, not lambdas: a lambda's conversion function would be compiled without the target pragma.
struct Relu {
  static V of(V x) { return max(zero(), x); }
};
// The tanh form: x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
struct GeluTanh {
  static V of(V x) {
    const V cubic = fma(mul(mul(x, x), x), set1(0.044715f), x);
    const V e = exp_vector(min(set1(88.0f), mul(cubic, set1(-1.5957691216057308f))));
    return div(x, add(e, set1(1.0f)));
  }
};
// max(x, 0) - |x| q with q = (1 - erf(|x| / sqrt(2))) / 2, to about 1e-7 (Abramowitz and Stegun 1964, 7.1.26).
struct Gelu {
  static V of(V x) {
    const V size = max(x, sub(zero(), x)), z = mul(size, set1(0.70710678f));
    const V t = div(set1(1.0f), fma(z, set1(0.3275911f), set1(1.0f)));
    V p = set1(1.061405429f);
    p = fma(p, t, set1(-1.453152027f));
    p = fma(p, t, set1(1.421413741f));
    p = fma(p, t, set1(-0.284496736f));
    p = fma(p, t, set1(0.254829592f));
    const V q = mul(mul(mul(p, t), exp_vector(mul(sub(zero(), z), z))), set1(0.5f));
    return sub(max(zero(), x), mul(size, q));
  }
};
struct Silu {
  static V of(V x) { return div(x, add(exp_vector(min(set1(88.0f), sub(zero(), x))), set1(1.0f))); }
};

template <typename Function>
struct Alone {
  V operator()(V x, V) const { return Function::of(x); }
};
template <typename Function>
struct Gating {
  V operator()(V gate, V x) const { return mul(Function::of(gate), x); }
};
template <typename Function>
void activate(const float* x, const float*, int size, float* out) {
  map(size, out, Alone<Function>{}, x, x);
}
template <typename Function>
void activate_gated(const float* gate, const float* x, int size, float* out) {
  map(size, out, Gating<Function>{}, gate, x);
}

struct SoftCap {
  float cap, doubled_inverse;
  V operator()(V x, V) const { return soft_cap_vector(x, cap, doubled_inverse); }
};
void soft_cap(const float* x, int size, float cap, float* out) { map(size, out, SoftCap{cap, 2.0f / cap}, x, x); }

void argmax(const float* x, int size, float* best, int* index, bool* finite) {
  // x * 0 is 0 for finite values and NaN otherwise, and NaN stays in a sum.
  V top = set1(-3.4028235e38f), poison = zero();
  int i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const V v = load(x + i);
    top = max(top, v);
    poison = fma(v, zero(), poison);
  }
  float largest = max_lanes(top);
  float poisoned = sum_lanes(poison);
  for (; i < size; ++i) {
    largest = x[i] > largest ? x[i] : largest;
    poisoned += x[i] * 0.0f;
  }
  *finite = poisoned == 0.0f;
  *best = largest;
  const V target = set1(largest);
  int first = 0;
  while (first + kWidth <= size && !any_equal(load(x + first), target)) first += kWidth;
  while (first < size && x[first] != largest) ++first;
  *index = first;
}

struct ExpScaled {
  float shift, scale;
  V operator()(V a, V) const { return exp_vector(mul(sub(a, set1(shift)), set1(scale))); }
};

struct WeightedExp {
  float shift;
  V operator()(V a, V) const {
    // A banned logit is so low that the product would not vanish: exp_vector is never 0.
    const V below = max(set1(-87.0f), sub(a, set1(shift)));
    return mul(exp_vector(below), below);
  }
};

template <typename Term>
double sum(const float* x, int size, Term term) {
  double total = 0.0;
  int i = 0;
  // Partial sums of at most 64 vectors keep single precision harmless for large vocabularies.
  while (i + kWidth <= size) {
    V part = zero();
    for (int v = 0; v < 64 && i + kWidth <= size; ++v, i += kWidth) part = add(part, term(load(x + i), zero()));
    total += sum_lanes(part);
  }
  for (; i < size; ++i) {
    float one[kWidth] = {};
    one[0] = x[i];
    store(one, term(load(one), zero()));
    total += one[0];
  }
  return total;
}

double sum_exp(const float* x, int size, float shift, float scale) { return sum(x, size, ExpScaled{shift, scale}); }
double sum_weighted_exp(const float* x, int size, float shift) { return sum(x, size, WeightedExp{shift}); }

void exp_scaled(const float* x, int size, float shift, float scale, float* out) {
  map(size, out, ExpScaled{shift, scale}, x, x);
}

constexpr Kernels table(const char* name, Gemm int8, uint8_t int8_offset) {
  return {name,
          kMaxQueries,
          {{gemm<Fp32Row, kFp32Rows>, kFp32Rows}, {gemm<Bf16Row, kBf16Rows>, kBf16Rows}, int8},
          quantise,
          int8_offset,
          {rms_norm, layer_norm},
          {{activate<Relu>, activate_gated<Relu>},
           {activate<Gelu>, activate_gated<Gelu>},
           {activate<GeluTanh>, activate_gated<GeluTanh>},
           {activate<Silu>, activate_gated<Silu>}},
          soft_cap,
          {attend<Fp32Row>, attend<Bf16Row>},
          argmax,
          sum_exp,
          sum_weighted_exp,
          exp_scaled};
}
