#include "model/transformer.h"

#include <algorithm>
#include <utility>

namespace kdtw {
namespace {

// Fewer tokens of a prompt are read again rather than copied: copying may cut a pass in two.
constexpr int kLeastShared = 16;

// The row whose prompt begins with most of this one's tokens, and how many, but for the last; `row` itself if it is as
// good as another. 0: too few to be worth it.
std::pair<int, int> longest_shared(const ModelState& state, std::span<const int32_t> prompt, int row) {
  const auto shared = [&](int other) {
    const auto& held = state.prompts[other];
    const auto end = std::mismatch(held.begin(), held.end(), prompt.begin(), prompt.end() - 1).first;
    return static_cast<int>(end - held.begin());
  };
  int from = row, most = shared(row);
  for (int other = 0; other < state.rows; ++other)
    if (const int length = shared(other); length > most) from = other, most = length;
  return {from, most < kLeastShared ? 0 : most};
}

}  // namespace

ModelState::ModelState(const Transformer& model, int rows, int source_capacity, int target_capacity)
    : weights(model.hold()),
      rows(rows),
      source_capacity(source_capacity),
      target_capacity(target_capacity),
      source_length(rows, 0),
      offset(rows, 0),
      prompt_end(rows, 0),
      prompts(rows) {
  const Config& config = model.config();
  const auto fits = [&](const StackConfig& stack, int64_t needed, const char* what) {
    const int room = stack.positions - stack.first_position;
    require(stack.positions == 0 || needed <= room, config.name, ": ", what, " of up to ", needed,
            " tokens were asked for, but the model's table of positions ends at ", room,
            "; lower max_source_length or max_new_tokens");
  };
  if (config.has_encoder()) fits(config.encoder, source_capacity, "sources");
  // A prompt's last token is read as the first of the outputs', and the last output is not read.
  fits(config.decoder, int64_t{target_capacity} - 1 + (config.has_encoder() ? 0 : source_capacity - 1),
       config.has_encoder() ? "outputs" : "prompts with their outputs");
}

void ModelState::make_caches(Operations& operations, const Config& config) {
  if (!self.empty()) return;
  const StackConfig& decoder = config.decoder;
  const auto cache = [&](int capacity) {
    return operations.make_cache(rows, decoder.key_heads, decoder.head_size, capacity, config.cache_dtype);
  };
  for (int i = 0; i < decoder.layers; ++i) {
    self.push_back(cache(config.has_encoder() ? target_capacity : source_capacity + target_capacity));
    if (config.has_encoder()) cross.push_back(cache(source_capacity));
  }
}

void Workspace::reserve(Operations& operations, const Config& config, int tokens) {
  if (tokens <= tokens_) return;
  size_t M = 0, wide = 0, mixed_size = 0, turned = 0;
  for (const StackConfig* stack : {&config.encoder, &config.decoder}) {
    if (stack->layers == 0) continue;  // nothing has checked its other numbers
    const size_t in = (stack->activation.gated ? 2 : 1) * static_cast<size_t>(stack->feed_forward);
    M = std::max<size_t>(M, stack->model_size);
    wide = std::max({wide, static_cast<size_t>(stack->projected()), in, static_cast<size_t>(stack->model_size)});
    mixed_size =
        std::max({mixed_size, static_cast<size_t>(stack->query_size()), static_cast<size_t>(stack->feed_forward)});
    turned = std::max<size_t>(turned, 2 * stack->rotary_pairs);
  }
  memory_ = operations.allocate(tokens * (3 * M + wide + mixed_size + angles.size() * turned));
  hidden = memory_.data;
  normed = hidden + tokens * M;
  gathered = normed + tokens * M;
  projected = gathered + tokens * M;
  mixed = projected + tokens * wide;
  angles[0] = mixed + tokens * mixed_size;
  angles[1] = angles[0] + tokens * turned;
  tokens_ = tokens;
}

size_t Transformer::bytes() const {
  size_t total = 0;
  for (const Weight* weight : weights_) total += weight->bytes();
  return total;
}

void Transformer::embed(Operations& operations, const Stack& stack, Workspace& work, const PassTokens& placed) const {
  const StackConfig& config = config_of(stack);
  const int count = static_cast<int>(placed.ids.size());
  operations.embed({.table = stack.embedding ? stack.embedding.get() : embedding_.get(),
                    .scale = config.embedding_scale,
                    .mark = mark_.data,
                    .positions = stack.positions.data,
                    .first_position = config.first_position},
                   placed, work.hidden);
  if (stack.embedding_norm)
    operations.norm(norm_of(config, stack.embedding_norm), work.hidden, count, config.model_size, work.hidden);
  for (size_t kind = 0; kind < stack.rotary.size(); ++kind)
    if (stack.rotary[kind].pairs > 0) operations.angles(stack.rotary[kind], placed.self, work.angles[kind]);
}

void Transformer::add(Operations& operations, const StackConfig& stack, const Norms& norms, const Weight& weight,
                      Workspace& work, int tokens) const {
  if (norms.inside) {
    operations.linear(weight, work.mixed, tokens, work.projected, false);
    operations.norm(norm_of(stack, norms.inside), work.projected, tokens, stack.model_size, work.hidden, true);
  } else {
    operations.linear(weight, work.mixed, tokens, work.hidden, true);
  }
  if (norms.after) operations.norm(norm_of(stack, norms.after), work.hidden, tokens, stack.model_size, work.hidden);
}

void Transformer::project(Operations& operations, const StackConfig& stack, const NormWeights& norm,
                          const Weight& weight, Workspace& work, int tokens) const {
  operations.norm_linear(weight, work.hidden, norm_of(stack, norm), tokens, work.normed, work.projected);
}

void Transformer::self_attention(Operations& operations, const Stack& stack, size_t layer, KeyValueCache& cache,
                                 Workspace& work, const PassTokens& placed) const {
  const StackConfig& config = config_of(stack);
  const Attention& part = stack.layers[layer].self;
  const int count = static_cast<int>(placed.ids.size()), stride = config.projected(), i = static_cast<int>(layer);
  float* const keys = work.projected + config.query_size();
  project(operations, config, part.norms.before, *part.query_key_value, work, count);
  if (part.query_norm || config.rotary_pairs > 0) {
    const auto turn = [&](float* x, int heads, const NormWeights& norm) {
      const float* const angles = work.angles[config.rotary(i)];
      const int size = config.head_size;
      Norm of_heads = norm_of(config, norm);
      if (config.query_norm_whole) {
        operations.turn_heads(x, stride, count, 1, heads * size, of_heads, angles, 0);
        of_heads.scale = nullptr;
      }
      operations.turn_heads(x, stride, count, heads, size, of_heads, angles, config.rotary_pairs);
    };
    turn(work.projected, config.heads, part.query_norm);
    turn(keys, config.key_heads, part.key_norm);
  }
  operations.store(cache, placed.self, keys, keys + config.key_size(), stride);
  operations.attend(cache, placed.self, work.projected, stride,
                    {.heads = config.heads,
                     .scale = config.attention_scale,
                     .cap = config.attention_cap,
                     .window = config.window(i),
                     .bias = part.bias},
                    work.mixed);
  add(operations, config, part.norms, *part.output, work, count);
}

void Transformer::cross_attention(Operations& operations, size_t layer, const KeyValueCache& cache, Workspace& work,
                                  const PassTokens& placed) const {
  const StackConfig& config = config_.decoder;
  const Attention& part = decoder_.layers[layer].cross;
  const int count = static_cast<int>(placed.ids.size());
  project(operations, config, part.norms.before, *part.query, work, count);
  operations.attend(cache, placed.cross, work.projected, config.query_size(),
                    {.heads = config.heads, .scale = config.attention_scale, .cap = config.attention_cap}, work.mixed);
  add(operations, config, part.norms, *part.output, work, count);
}

void Transformer::feed_forward(Operations& operations, const StackConfig& config, const FeedForward& part,
                               Workspace& work, int tokens) const {
  operations.norm_linear_activate(*part.in, config.activation, work.hidden, norm_of(config, part.norms.before), tokens,
                                  work.normed, work.projected, work.mixed);
  add(operations, config, part.norms, *part.out, work, tokens);
}

void Transformer::open(Operations& operations, ModelState& state, Workspace& work, std::span<const int> rows,
                       std::span<const std::vector<int32_t>> sources, const Poll& poll) const {
  state.make_caches(operations, config_);
  if (!config_.has_encoder()) return read_prompts(operations, state, work, rows, sources, poll);
  const StackConfig& config = config_.encoder;
  for (size_t first = 0; first < rows.size();) {
    // As many whole rows as fit a pass, at least one: attention needs a whole row.
    size_t last = first;
    int count = 0, longest = 0;
    while (last < rows.size() && (last == first || count + static_cast<int>(sources[last].size()) <= kMostTokens)) {
      count += static_cast<int>(sources[last].size());
      longest = std::max(longest, static_cast<int>(sources[last].size()));
      ++last;
    }
    const int group = static_cast<int>(last - first);
    std::vector<int32_t> ids;
    std::vector<TokenAt> local, target;  // places in the pass's own cache, and in the state's
    for (int i = 0; i < group; ++i) {
      const auto& source = sources[first + i];
      const int length = static_cast<int>(source.size());
      for (int position = 0; position < length; ++position) {
        ids.push_back(source[position]);
        local.push_back({i, position, length});
        target.push_back({rows[first + i], position, length});
      }
      state.source_length[rows[first + i]] = length;
    }
    work.reserve(operations, config_, count);
    const auto cache = operations.make_passing_cache(work.passing, group, config.key_heads, config.head_size, longest);
    const PassTokens placed = operations.place({ids, {}, local, target, {}});
    embed(operations, encoder_, work, placed);
    for (size_t i = 0; i < encoder_.layers.size(); ++i) {
      poll();
      self_attention(operations, encoder_, i, *cache, work, placed);
      poll();
      feed_forward(operations, config, encoder_.layers[i].feed_forward, work, count);
    }
    if (encoder_.norm)
      operations.norm(norm_of(config, encoder_.norm), work.hidden, count, config.model_size, work.normed);
    const float* const encoded = encoder_.norm ? work.normed : work.hidden;
    const int K = config_.decoder.key_size();
    for (size_t i = 0; i < decoder_.layers.size(); ++i) {
      poll();
      operations.linear(*decoder_.layers[i].cross.key_value, encoded, count, work.projected, false);
      operations.store(*state.cross[i], placed.cross, work.projected, work.projected + K, 2 * K);
    }
    first = last;
  }
}

void Transformer::read_prompts(Operations& operations, ModelState& state, Workspace& work, std::span<const int> rows,
                               std::span<const std::vector<int32_t>> sources, const Poll& poll) const {
  std::vector<InputToken> tokens;
  TokenLists lists;
  size_t unread = 0;  // of rows[unread] and what follows, tokens wait to be read
  size_t i = 0;
  const auto read = [&] {
    decode(operations, state, work, operations.place(list(state, tokens, {}, lists)), poll);
    tokens.clear();
    unread = i;
  };
  for (; i < rows.size(); ++i) {
    const auto& prompt = sources[i];
    const int before = static_cast<int>(prompt.size()) - 1, row = rows[i];
    const auto [from, shared] = longest_shared(state, prompt, row);
    if (shared > 0 && from != row) {
      const auto waiting = rows.subspan(unread, i - unread);
      if (!tokens.empty() && std::ranges::find(waiting, from) != waiting.end()) read();
      for (const auto& cache : state.self) operations.copy(*cache, from, row, shared);
    }
    state.source_length[row] = before + 1;
    state.offset[row] = before;
    state.prompt_end[row] = prompt.back();
    state.prompts[row].assign(prompt.begin(), prompt.end() - 1);
    for (int t = shared; t < before; ++t) {
      tokens.push_back({prompt[t], row, t - before, 0});
      if (tokens.size() == kMostTokens) read();
    }
  }
  if (!tokens.empty()) read();
}

PassTokens Transformer::list(const ModelState& state, std::span<const InputToken> tokens,
                             std::span<const int32_t> wanted, TokenLists& lists) const {
  const bool marks = config_.teachers > 0;
  lists.ids.clear(), lists.marked.clear(), lists.self.clear(), lists.cross.clear();
  lists.ids.reserve(tokens.size()), lists.self.reserve(tokens.size()), lists.cross.reserve(tokens.size());
  if (marks) lists.marked.reserve(tokens.size());
  bool any_marked = false;
  for (const InputToken& token : tokens) {
    const int at = state.offset[token.row] + token.position;
    const bool prompt_end = token.position == 0 && !config_.has_encoder();
    lists.ids.push_back(prompt_end ? state.prompt_end[token.row] : token.id);
    if (marks) lists.marked.push_back(token.marked), any_marked |= token.marked != 0;
    lists.self.push_back({token.row, at, at + 1});
    lists.cross.push_back({token.row, token.position, state.source_length[token.row]});
  }
  if (!any_marked) lists.marked.clear();
  return {lists.ids, lists.marked, lists.self, lists.cross, wanted};
}

void Transformer::decode(Operations& operations, ModelState& state, Workspace& work, const PassTokens& placed,
                         const Poll& poll) const {
  const StackConfig& config = config_.decoder;
  const int count = static_cast<int>(placed.ids.size());
  work.reserve(operations, config_, count);
  embed(operations, decoder_, work, placed);
  for (size_t i = 0; i < decoder_.layers.size(); ++i) {
    poll();
    self_attention(operations, decoder_, i, *state.self[i], work, placed);
    if (config_.has_encoder()) cross_attention(operations, i, *state.cross[i], work, placed);
    poll();
    feed_forward(operations, config, decoder_.layers[i].feed_forward, work, count);
  }
  // Only the positions that somebody asks about go on to the head.
  const int asked = static_cast<int>(placed.wanted.size());
  operations.gather(work.hidden, placed.wanted, config.model_size, decoder_.norm ? work.normed : work.gathered);
  if (decoder_.norm)
    operations.norm(norm_of(config, decoder_.norm), work.normed, asked, config.model_size, work.gathered);
}

}  // namespace kdtw
