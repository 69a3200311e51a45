// The CPU kernels, written once over a vector type `V` that the including file defines together with
// kWidth, kFp32Rows and load/store/set1/add/sub/mul/fma/max/less/... No contraction is left to the
// compiler (-ffp-contract=off): every fused multiply-add below is written as one, so that the same
// source gives the same bits in every instantiation of a template.
// Included inside an anonymous namespace; must not include or define anything shared between files.

inline float sum_lanes(V v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float max_lanes(V v) {
  float lanes[kWidth];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < kWidth; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

void rms_norm(const float* x, const float* scale, float epsilon, int size, float* out) {
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

// exp(x) to about 2 ulp (Cephes' polynomial), at least 1e-38; x <= 88. NaN stays NaN: max and min return
// their second operand when one is NaN.
inline V exp_vector(V x) {
  x = max(set1(-87.33654f), x);
  const V n = round_even(mul(x, set1(1.44269504088896341f)));
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, mul(r, r), r);
  return scale_by_power(add(p, set1(1.0f)), n);
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
  V operator()(V a, V) const { return max(zero(), a); }
};

void relu(const float* x, int size, float* out) { map(size, out, Relu{}, x, x); }

// gelu_new(g) * l with gelu_new(g) = g / (1 + exp(-2u)), u = sqrt(2/pi) (g + 0.044715 g^3): the tanh form.
struct GatedGelu {
  V operator()(V g, V l) const {
    const V cubic = fma(mul(mul(g, g), g), set1(0.044715f), g);
    const V e = exp_vector(min(set1(88.0f), mul(cubic, set1(-1.5957691216057308f))));
    return mul(div(g, add(e, set1(1.0f))), l);
  }
};

void gated_gelu(const float* gate, const float* linear, int size, float* out) {
  map(size, out, GatedGelu{}, gate, linear);
}

// Scores of kBlocks * kKeyBlock keys; one accumulator per key, so the number of blocks changes no score.
template <int kBlocks>
inline void score_blocks(const float* query, const float* keys, int head_size, float* scores) {
  constexpr int kBlockVectors = kKeyBlock / kWidth;
  V acc[kBlocks][kBlockVectors];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) acc[b][v] = zero();
  for (int d = 0; d < head_size; ++d) {
    const V q = set1(query[d]);
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
      for (int v = 0; v < kBlockVectors; ++v)
        acc[b][v] = fma(q, load(keys + (b * head_size + d) * kKeyBlock + v * kWidth), acc[b][v]);
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
    for (int v = 0; v < kBlockVectors; ++v) store(scores + b * kKeyBlock + v * kWidth, acc[b][v]);
}

// out[kColumns vectors] = sum_j weights[j] values[j] * factor; even and odd keys apart, then added.
template <int kColumns>
inline void weigh_values(const float* weights, const float* values, int length, int stride, float factor, float* out) {
  V even[kColumns], odd[kColumns];
#pragma GCC unroll 4
  for (int c = 0; c < kColumns; ++c) even[c] = odd[c] = zero();
  int j = 0;
  for (; j + 2 <= length; j += 2, values += 2 * stride) {
    const V first = set1(weights[j]), second = set1(weights[j + 1]);
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      even[c] = fma(first, load(values + c * kWidth), even[c]);
      odd[c] = fma(second, load(values + stride + c * kWidth), odd[c]);
    }
  }
  if (j < length) {
    const V last = set1(weights[j]);
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) even[c] = fma(last, load(values + c * kWidth), even[c]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < kColumns; ++c) store(out + c * kWidth, mul(add(even[c], odd[c]), set1(factor)));
}

// scores[j] += table[clamp(j - position, -lowest, highest) + lowest], in its three stretches.
inline void add_bias(const float* table, int lowest, int highest, int position, int length, float* scores) {
  const int near = position - lowest > 0 ? (position - lowest < length ? position - lowest : length) : 0;
  const int far = position + highest + 1 < length ? position + highest + 1 : length;
  int j = 0;
  for (; j < near; ++j) scores[j] += table[0];
  for (; j < far; ++j) scores[j] += table[j - position + lowest];
  for (; j < length; ++j) scores[j] += table[lowest + highest];
}

void attend(const float* query, const float* keys, const float* values, int length, int head_size, int value_stride,
            const float* bias_table, int lowest, int highest, int position, float* scores, float* scratch_out,
            float* out) {
  const int padded = (length + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
  int j = 0;
  for (; j + 4 * kKeyBlock <= padded; j += 4 * kKeyBlock)
    score_blocks<4>(query, keys + static_cast<long>(j) * head_size, head_size, scores + j);
  for (; j < padded; j += kKeyBlock)
    score_blocks<1>(query, keys + static_cast<long>(j) * head_size, head_size, scores + j);
  if (bias_table) add_bias(bias_table, lowest, highest, position, length, scores);
  for (j = length; j < padded; ++j) scores[j] = -3.0e38f;
  V top = set1(-3.0e38f);
  for (j = 0; j < padded; j += kWidth) top = max(top, load(scores + j));
  const V largest = set1(max_lanes(top));
  for (j = 0; j < padded; j += kWidth) store(scores + j, exp_vector(sub(load(scores + j), largest)));
  for (j = length; j < padded; ++j) scores[j] = 0.0f;
  V total = zero();
  for (j = 0; j < padded; j += kWidth) total = add(total, load(scores + j));
  const float inverse = 1.0f / sum_lanes(total);
  int d = 0;
  for (; d + 4 * kWidth <= value_stride; d += 4 * kWidth)
    weigh_values<4>(scores, values + d, length, value_stride, inverse, scratch_out + d);
  for (; d < value_stride; d += kWidth)
    weigh_values<1>(scores, values + d, length, value_stride, inverse, scratch_out + d);
  for (d = 0; d < head_size; ++d) out[d] = scratch_out[d];
}

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

double sum_exp(const float* x, int size, float shift) {
  double total = 0.0;
  int i = 0;
  const V s = set1(shift);
  // Partial sums of at most 64 vectors keep single precision harmless for large vocabularies.
  while (i + kWidth <= size) {
    V part = zero();
    for (int v = 0; v < 64 && i + kWidth <= size; ++v, i += kWidth) part = add(part, exp_vector(sub(load(x + i), s)));
    total += sum_lanes(part);
  }
  for (; i < size; ++i) {
    float one[kWidth] = {};
    one[0] = x[i];
    store(one, exp_vector(sub(load(one), s)));
    total += one[0];
  }
  return total;
}

struct ExpScaled {
  float shift, scale;
  V operator()(V a, V) const { return exp_vector(mul(sub(a, set1(shift)), set1(scale))); }
};

void exp_scaled(const float* x, int size, float shift, float scale, float* out) {
  map(size, out, ExpScaled{shift, scale}, x, x);
}

constexpr Kernels table(const char* name, Gemm int8, uint8_t int8_offset) {
  return {name,       {{gemm<Fp32Row, kFp32Rows>, kFp32Rows}, {gemm<Bf16Row, kBf16Rows>, kBf16Rows}, int8},
          quantise,   int8_offset,
          rms_norm,   relu,
          gated_gelu, attend,
          argmax,     sum_exp,
          exp_scaled};
}
