// What several kernels share about a vector `V`; see kernels_body.h for how they are compiled.

// How a row of stored numbers reads, kInputs of them in every 4 bytes: number k of the lanes of vector v.
struct Fp32Row {
  static constexpr int kInputs = 1;
  static inline V read(const float* row, int, int v) { return load(row + v * kWidth); }
};
struct Bf16Row {
  static constexpr int kInputs = 2;
  static inline V read(const float* row, int k, int v) {
    const V pairs = load(row + v * kWidth);
    return k == 0 ? low_halves(pairs) : high_halves(pairs);
  }
};

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

// cap * tanh(x / cap), of the cap and 2 / cap; tanh(y) = 1 - 2 / (exp(2y) + 1).
inline V soft_cap_vector(V x, float cap, float doubled_inverse) {
  const V e = exp_vector(min(set1(88.0f), mul(x, set1(doubled_inverse))));
  return fma(div(set1(-2.0f), add(e, set1(1.0f))), set1(cap), set1(cap));
}
