// Attention of a few queries of one row over the same cached keys and values (Attention in kernels.h), written
// once over the vector type `V` that the including file defines; see kernels_body.h for how. The queries share what is
// read from the cache and nothing else: a score has one accumulator over ascending d, an output one over the even keys
// and one over the odd ones, a softmax is its query's own. So a group of any size gives the bits of its queries alone.

constexpr int kKeyVectors = kKeyBlock / kWidth;  // vectors of one d of a key block
constexpr float kHidden = -3.0e38f;              // score of a key that does not count

// A query has four accumulators at least, for enough work per load, and eight where the registers allow it: one query
// alone needs that many to hide the latency of the multiply-add.
constexpr int kMaxQueries = kAccumulators / 4;
constexpr int accumulators_each(int queries) { return queries * 8 <= kAccumulators ? 8 : 4; }

// Of a block of keys, in floats' worth of memory.
template <typename Row>
constexpr long key_block_size(int head_size) {
  return static_cast<long>(head_size + Row::kInputs - 1) / Row::kInputs * kKeyBlock;
}

// Adds kUsed d's of the scores, those of one row of each of the blocks.
template <typename Row, int kUsed, int kQueries, int kVectorsEach>
[[gnu::always_inline]] inline void add_scores(const float* query, long query_stride, const float* row, long block_size,
                                              V (&acc)[kQueries][kVectorsEach]) {
#pragma GCC unroll 2
  for (int k = 0; k < kUsed; ++k)
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r) {
      const V input = set1(query[r * query_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectorsEach; ++v)
        acc[r][v] = fma(input, Row::read(row + v / kKeyVectors * block_size, k, v % kKeyVectors), acc[r][v]);
    }
}

// Scores of kBlocks blocks of keys; those of block b and query r go to scores + (b * kQueries + r) * kKeyBlock.
// As much memory from `ahead` on is fetched for whoever reads it next.
template <typename Row, int kQueries, int kBlocks>
inline void score_tile(const Attention& a, const float* __restrict keys, const float* ahead, float* __restrict scores) {
  constexpr int kVectorsEach = kBlocks * kKeyVectors;
  const long query_stride = a.query_stride, block_size = key_block_size<Row>(a.head_size);
  V acc[kQueries][kVectorsEach];
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsEach; ++v) acc[r][v] = zero();
  const float* __restrict query = a.queries;
  for (int rows = a.head_size / Row::kInputs; rows > 0; --rows) {
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) prefetch(reinterpret_cast<const std::byte*>(ahead + b * block_size));
    add_scores<Row, Row::kInputs>(query, query_stride, keys, block_size, acc);
    query += Row::kInputs, keys += kKeyBlock, ahead += kKeyBlock;
  }
  if (a.head_size % Row::kInputs != 0) add_scores<Row, 1>(query, query_stride, keys, block_size, acc);
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectorsEach; ++v)
      store(scores + (v / kKeyVectors * kQueries + r) * kKeyBlock + v % kKeyVectors * kWidth, acc[r][v]);
}

// Scores of `blocks` blocks, as many at a time as there are accumulators.
template <typename Row, int kQueries, int kBlocks>
inline void score(const Attention& a, const float* keys, int blocks, float* scores) {
  const long step = kBlocks * key_block_size<Row>(a.head_size);
  for (; blocks >= kBlocks; blocks -= kBlocks, keys += step, scores += kBlocks * kQueries * kKeyBlock)
    score_tile<Row, kQueries, kBlocks>(a, keys, blocks > kBlocks ? keys + step : a.values, scores);
  if constexpr (kBlocks > 1)
    if (blocks > 0) score<Row, kQueries, kBlocks / 2>(a, keys, blocks, scores);
}

// The bias of kWidth keys, the first of them `distance` after the query.
inline V bias_at(const float* table, int lowest, int highest, int distance) {
  if (distance + kWidth - 1 <= -lowest) return set1(table[0]);
  if (distance >= highest) return set1(table[lowest + highest]);
  if (distance >= -lowest && distance + kWidth - 1 <= highest) return load(table + distance + lowest);
  float lanes[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    const int d = distance + i;
    lanes[i] = table[(d < -lowest ? -lowest : d > highest ? highest : d) + lowest];
  }
  return load(lanes);
}

// What hides keys: of three blocks, those of the first and the last. Read from where the second one begins, moved by as
// many keys as are hidden: forward for the last keys of a block, backward for its first.
struct Edge {
  float limit[3 * kKeyBlock];   // of the score
  float factor[3 * kKeyBlock];  // of the weight
};
constexpr Edge make_edge() {
  Edge edge{};
  for (int i = 0; i < 3 * kKeyBlock; ++i) {
    const bool seen = i / kKeyBlock == 1;
    edge.limit[i] = seen ? __builtin_inff() : kHidden;
    edge.factor[i] = seen ? 1.0f : 0.0f;
  }
  return edge;
}
constexpr Edge kEdge = make_edge();

// Keys, from the first that is not skipped on, that end before what query r does not see any more.
inline int visible(const Attention& a, int r) {
  const TokenAt& token = a.tokens[r * a.token_stride];
  const int end = token.position + a.window;
  return (a.window > 0 && end < token.length ? end : token.length) - a.skipped;
}

// Turns the scores of query r into weights exp(score + bias - largest) in place, and returns 1 / their sum. `scores`
// points at the query's part of the first block. Keys from its length on get no weight, whatever lies there. kPlain:
// the rule has no scale, cap or window, and the loops over the keys need not ask.
template <bool kPlain>
inline float softmax(const Attention& a, int r, float* scores) {
  const int position = a.tokens[r * a.token_stride].position - a.skipped, length = visible(a, r);
  const int first = a.window > 0 ? position - a.window + 1 : 0;  // the first key of the window
  const int last = (length - 1) / kKeyBlock, hidden = (last + 1) * kKeyBlock - length;
  const long stride = static_cast<long>(a.count) * kKeyBlock;
  V top = set1(kHidden);
  for (int b = 0; b <= last; ++b) {
    float* block = scores + b * stride;
#pragma GCC unroll 2
    for (int v = 0; v < kKeyBlock; v += kWidth) {
      V score = load(block + v);
      if constexpr (!kPlain) {
        score = mul(score, set1(a.scale));
        if (a.cap > 0.0f) score = soft_cap_vector(score, a.cap, 2.0f / a.cap);
      }
      if (a.bias) score = add(score, bias_at(a.bias, a.lowest, a.highest, b * kKeyBlock + v - position));
      if (b == last) score = min(score, load(kEdge.limit + kKeyBlock + hidden + v));
      const int before = first - (b * kKeyBlock + v);
      if (!kPlain && before > 0) score = min(score, load(kEdge.limit + (before < kKeyBlock ? kKeyBlock - before : 0)));
      store(block + v, score);
      top = max(top, score);
    }
  }
  const V largest = set1(max_lanes(top));
  V total = zero();
  for (int b = 0; b <= last; ++b) {
    float* block = scores + b * stride;
#pragma GCC unroll 2
    for (int v = 0; v < kKeyBlock; v += kWidth) {
      V weight = exp_vector(sub(load(block + v), largest));
      if (b == last) weight = mul(weight, load(kEdge.factor + kKeyBlock + hidden + v));
      const int before = first - (b * kKeyBlock + v);
      if (!kPlain && before > 0)
        weight = mul(weight, load(kEdge.factor + (before < kKeyBlock ? kKeyBlock - before : 0)));
      store(block + v, weight);
      total = add(total, weight);
    }
  }
  return 1.0f / sum_lanes(total);
}

// The outputs of all queries from `column` on, kColumns vectors: sum_j weight of j * values[j], times the query's
// factor. Weights lie as scores do; the first `shared` keys, an even number, count for every query.
template <typename Row, int kQueries, int kColumns>
inline void weigh_tile(const Attention& a, const float* weights, int shared, const float* factors, int column) {
  const float* values = a.values + column;
  const long stride = a.value_stride;
  V even[kQueries][kColumns], odd[kQueries][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) even[r][c] = odd[r][c] = zero();
  for (int j = 0; j < shared; j += 2) {
    const float* pair = weights + j / kKeyBlock * (kQueries * kKeyBlock) + j % kKeyBlock;
    const float* row = values + j / Row::kInputs * stride;
    const float* next = values + (j + 1) / Row::kInputs * stride;
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r) {
      const V of_first = set1(pair[r * kKeyBlock]), of_second = set1(pair[r * kKeyBlock + 1]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        even[r][c] = fma(of_first, Row::read(row, 0, c), even[r][c]);
        odd[r][c] = fma(of_second, Row::read(next, 1, c), odd[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kQueries; ++r) {
    for (int j = shared; j < visible(a, r); ++j) {
      const V weight = set1(weights[(j / kKeyBlock * kQueries + r) * kKeyBlock + j % kKeyBlock]);
      const float* row = values + j / Row::kInputs * stride;
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        V& sum = j % 2 == 0 ? even[r][c] : odd[r][c];
        sum = fma(weight, Row::read(row, j % 2, c), sum);
      }
    }
    float* out = a.out + static_cast<long>(r) * a.out_stride + column;
    const V factor = set1(factors[r]);
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      const V sum = mul(add(even[r][c], odd[r][c]), factor);
      const int room = a.head_size - column - c * kWidth;
      if (room >= kWidth) {
        store(out + c * kWidth, sum);
      } else {
        float lanes[kWidth];
        store(lanes, sum);
        for (int i = 0; i < room; ++i) out[c * kWidth + i] = lanes[i];
      }
    }
  }
}

template <typename Row, int kQueries>
void attend_group(const Attention& a) {
  int shared = visible(a, 0), longest = shared;
  for (int r = 1; r < kQueries; ++r) {
    const int length = visible(a, r);
    shared = length < shared ? length : shared;
    longest = length > longest ? length : longest;
  }
  shared -= shared % 2;
  constexpr int kEach = accumulators_each(kQueries), kColumns = kEach / 2;
  // Blocks often lie a page apart and share the sets of the first cache level: more than four evict each other.
  constexpr int kBlocks = kEach / kKeyVectors > 4 ? 4 : kEach / kKeyVectors;
  float* scores = a.scratch;
  score<Row, kQueries, kBlocks>(a, a.keys, (longest + kKeyBlock - 1) / kKeyBlock, scores);
  float factors[kQueries];
  const bool plain = a.scale == 1.0f && a.cap == 0.0f && a.window == 0;
  for (int r = 0; r < kQueries; ++r)
    factors[r] = plain ? softmax<true>(a, r, scores + r * kKeyBlock) : softmax<false>(a, r, scores + r * kKeyBlock);
  int column = 0;
  for (; column + kColumns * kWidth <= a.value_stride; column += kColumns * kWidth)
    weigh_tile<Row, kQueries, kColumns>(a, scores, shared, factors, column);
  for (; column < a.head_size; column += kWidth) weigh_tile<Row, kQueries, 1>(a, scores, shared, factors, column);
}

template <typename Row, int kQueries = kMaxQueries>
void attend(const Attention& a) {
  if (a.count == kQueries) return attend_group<Row, kQueries>(a);
  if constexpr (kQueries > 1) attend<Row, kQueries - 1>(a);
}
