// Counts what memory requests cost on a GPU: the 32-byte sectors that a warp's request to global memory touches, beside
// the least that the bytes it asks for would need, and the passes that a request to shared memory takes (its bank
// ways). The k-th time lanes of a warp execute an instruction is taken to be one request.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <tuple>
#include <vector>

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
struct Count {
  uint64_t requests = 0, bytes = 0, cost = 0, ideal = 0;  // cost: sectors or passes
};

// By instruction, warp, and how often the thread had executed it before.
std::map<std::tuple<const void*, uint32_t, uint32_t>, Request> requests;
std::map<std::pair<uint32_t, const void*>, uint32_t> repetitions;  // by thread and instruction

template <typename T>
size_t count_distinct(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  return static_cast<size_t>(std::unique(values.begin(), values.end()) - values.begin());
}

void add_global(const Request& request, Count& count, std::set<size_t>& all_sectors) {
  std::vector<size_t> sectors, bytes;
  for (const Lane& lane : request.lanes) {
    for (size_t s = lane.offset / kSector; s <= (lane.offset + lane.bytes - 1) / kSector; ++s) sectors.push_back(s);
    for (uint32_t b = 0; b < lane.bytes; ++b) bytes.push_back(lane.offset + b);
  }
  const size_t asked = count_distinct(bytes);
  count.cost += count_distinct(sectors);
  count.bytes += asked;
  count.ideal += (asked + kSector - 1) / kSector;
  all_sectors.insert(sectors.begin(), sectors.end());
}

// 4 bytes a lane: the warp at once; 8: half a warp; 16: a quarter. Lanes that read the same word share it.
void add_shared(const Request& request, Count& count) {
  const uint32_t width = request.lanes[0].bytes, together = width > 8 ? 8 : width > 4 ? 16 : 32;
  for (uint32_t first = 0; first < 32; first += together) {
    std::vector<size_t> words[kBanks];
    for (const Lane& lane : request.lanes) {
      if (lane.lane < first || lane.lane >= first + together) continue;
      for (size_t w = lane.offset / kWord; w <= (lane.offset + lane.bytes - 1) / kWord; ++w)
        words[w % kBanks].push_back(w);
      count.bytes += lane.bytes;
    }
    size_t ways = 0;
    for (auto& bank : words) ways = std::max(ways, count_distinct(bank));
    count.cost += ways;
    count.ideal += ways > 0;
  }
}

}  // namespace

std::string& traffic_report() {
  static std::string report;
  return report;
}

void count_request(size_t offset, size_t bytes, bool shared, bool write, const void* pc) {
  const Thread& thread = *thread_now;
  Request& request = requests[{pc, thread.warp->index, repetitions[{thread.index, pc}]++}];
  request.shared = shared;
  request.write = write;
  request.lanes.push_back({offset, static_cast<uint32_t>(bytes), thread.lane});
}

void finish_traffic(const Launch& launch) {
  if (!settings().traffic) return;
  Count counts[2][2];  // of global memory and shared, read and written
  std::set<size_t> sectors[2];
  for (const auto& [key, request] : requests) {
    Count& count = counts[request.shared][request.write];
    ++count.requests;
    if (request.shared)
      add_shared(request, count);
    else
      add_global(request, count, sectors[request.write]);
  }
  requests.clear();
  repetitions.clear();
  std::ostringstream out;
  out << R"({"kernel": ")" << launch.work->name << R"(", "blocks": )"
      << launch.work->grid.x * launch.work->grid.y * launch.work->grid.z << R"(, "bytes_read": )"
      << sectors[0].size() * kSector << R"(, "bytes_written": )" << sectors[1].size() * kSector;
  for (const bool shared : {false, true}) {
    for (const bool write : {false, true}) {
      const Count& count = counts[shared][write];
      out << ", \"" << (shared ? "shared" : "global") << (write ? " stores" : " loads") << R"(": {"requests": )"
          << count.requests << R"(, "bytes": )" << count.bytes << R"(, "cost": )" << count.cost << R"(, "ideal": )"
          << count.ideal << "}";
    }
  }
  out << "}\n";
  traffic_report() += out.str();
}

}  // namespace simt::check
