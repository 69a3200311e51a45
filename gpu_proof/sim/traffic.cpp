// Counts what memory requests cost on a GPU: the 32-byte sectors that a warp's request to global memory touches, beside
// the least that the bytes it asks for would need, and the passes that a request to shared memory takes (its bank
// ways). The k-th time lanes of a warp execute an instruction is taken to be one request.
#include <algorithm>
#include <cstring>
#include <set>
#include <sstream>
#include <unordered_map>

#include "check.h"
#include "checker.h"
#include "device.h"

namespace simt::check {
namespace {

constexpr size_t kSector = 32, kBanks = 32, kWord = 4;

struct Lane {
  size_t offset;
  uint32_t bytes, lane;
};
struct Request {
  std::vector<Lane> lanes;
  bool shared, write;
};
struct RequestKey {
  const void* pc;
  uint32_t warp, repetition;
  bool operator==(const RequestKey&) const = default;
};
struct HashKey {
  size_t operator()(const RequestKey& key) const {
    return (reinterpret_cast<uintptr_t>(key.pc) * 0x9E3779B97F4A7C15ull) ^
           (uint64_t{key.warp} << 32 | key.repetition) * 0xC2B2AE3D27D4EB4Full;
  }
};
struct Line {
  bool shared, write;
  uint64_t requests = 0, bytes = 0, cost = 0, ideal = 0;  // cost: sectors or passes
};

std::unordered_map<RequestKey, Request, HashKey> requests;
std::unordered_map<uint64_t, uint32_t> repetitions;  // by thread and instruction

template <typename T>
size_t count_distinct(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  return static_cast<size_t>(std::unique(values.begin(), values.end()) - values.begin());
}

void add_global(const Request& request, Line& line, std::set<size_t>& all_sectors) {
  std::vector<size_t> sectors, bytes;
  for (const Lane& lane : request.lanes) {
    for (size_t s = lane.offset / kSector; s <= (lane.offset + lane.bytes - 1) / kSector; ++s) sectors.push_back(s);
    for (uint32_t b = 0; b < lane.bytes; ++b) bytes.push_back(lane.offset + b);
  }
  const size_t asked = count_distinct(bytes);
  line.cost += count_distinct(sectors);
  line.bytes += asked;
  line.ideal += (asked + kSector - 1) / kSector;
  all_sectors.insert(sectors.begin(), sectors.end());
}

// 4 bytes a lane: the warp at once; 8: half a warp; 16: a quarter. Lanes that read the same word share it.
void add_shared(const Request& request, Line& line) {
  const uint32_t widest = std::max_element(request.lanes.begin(), request.lanes.end(), [](auto& a, auto& b) {
                            return a.bytes < b.bytes;
                          })->bytes;
  const uint32_t together = widest > 8 ? 8 : widest > 4 ? 16 : 32;
  for (uint32_t first = 0; first < 32; first += together) {
    std::vector<size_t> words[kBanks];
    for (const Lane& lane : request.lanes) {
      if (lane.lane < first || lane.lane >= first + together) continue;
      for (size_t w = lane.offset / kWord; w <= (lane.offset + lane.bytes - 1) / kWord; ++w)
        words[w % kBanks].push_back(w);
      line.bytes += lane.bytes;
    }
    size_t ways = 0;
    for (auto& bank : words) ways = std::max(ways, count_distinct(bank));
    line.cost += ways;
    line.ideal += ways > 0;
  }
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

}  // namespace

std::string& traffic_report() {
  static std::string report;
  return report;
}

void count_request(size_t offset, size_t bytes, bool shared, bool write, const void* pc) {
  const Thread& thread = *thread_now;
  const uint64_t instruction = static_cast<uint64_t>(static_cast<const char*>(pc) - image().first);
  const RequestKey key{pc, thread.warp->index, repetitions[uint64_t{thread.index} << 36 ^ instruction]++};
  Request& request = requests[key];
  request.shared = shared;
  request.write = write;
  request.lanes.push_back({offset, static_cast<uint32_t>(bytes), thread.lane});
}

void finish_traffic(const Launch& launch) {
  if (!settings().traffic) return;
  std::map<const void*, Line> lines;
  std::set<size_t> read, written;
  for (const auto& [key, request] : requests) {
    Line& line = lines[key.pc];
    line.shared = request.shared;
    line.write = request.write;
    ++line.requests;
    if (request.shared)
      add_shared(request, line);
    else
      add_global(request, line, request.write ? written : read);
  }
  requests.clear();
  repetitions.clear();
  std::vector<const void*> addresses;
  for (const auto& [pc, line] : lines) addresses.push_back(pc);
  const auto names = lines_of(addresses);
  std::ostringstream out;
  out << "{\"kernel\": " << quoted(launch.name) << ", \"blocks\": " << launch.block_count
      << ", \"threads\": " << launch.block_threads << ", \"bytes_read\": " << read.size() * kSector
      << ", \"bytes_written\": " << written.size() * kSector << ", \"lines\": [";
  const char* separator = "";
  for (const auto& [pc, line] : lines) {
    out << separator << "{\"at\": " << quoted(names.at(pc)) << ", \"space\": \"" << (line.shared ? "shared" : "global")
        << "\", \"write\": " << (line.write ? "true" : "false") << ", \"requests\": " << line.requests
        << ", \"bytes\": " << line.bytes << ", \"cost\": " << line.cost << ", \"ideal\": " << line.ideal << "}";
    separator = ", ";
  }
  out << "]}\n";
  traffic_report() += out.str();
}

}  // namespace simt::check
