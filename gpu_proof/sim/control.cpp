// The device's fixed properties, and the C functions by which tests set and read the rest (kdtw_sim_*).
#include "control.h"

#include <cstring>
#include <sstream>

#include "check.h"
#include "streams.h"

namespace simt {

Settings& settings() {
  static Settings settings;
  return settings;
}
Counters& counters() {
  static Counters counters;
  return counters;
}

thread_local int chosen_device = 0;

}  // namespace simt

using namespace simt;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = settings().devices;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  ++counters().device_choices;
  if (device < 0 || device >= settings().devices)
    return set_error(cudaErrorInvalidDevice, "there is no simulated device of that number");
  chosen_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = chosen_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= settings().devices)
    return set_error(cudaErrorInvalidDevice, "there is no simulated device of that number");
  *properties = {};
  std::strcpy(properties->name, "simulated device");
  properties->major = 7;
  properties->minor = 5;
  properties->totalGlobalMem = kMemoryBytes;
  return cudaSuccess;
}
// ---------------------------------------------------------------- for tests
#define EXPORT __attribute__((visibility("default")))
extern "C" {

// order: 0 forward, 1 reverse, 2 random by seed.
EXPORT void kdtw_sim_schedule(int order, int depth_first, uint64_t seed, int resident_blocks, int lazy) {
  Settings& s = settings();
  s.order = static_cast<Order>(order);
  s.depth_first = depth_first != 0;
  s.seed = seed;
  s.resident_blocks = resident_blocks;
  s.lazy = lazy != 0;
}
EXPORT void kdtw_sim_conditional_nodes(int there) { settings().conditional_nodes = there != 0; }
EXPORT void kdtw_sim_largest_loop(int nodes) { settings().largest_loop = nodes; }
EXPORT void kdtw_sim_devices(int count) { settings().devices = count; }
EXPORT void kdtw_sim_memory(uint64_t device, uint64_t host) {
  settings().memory = device, settings().host_memory = host;
}
EXPORT uint64_t kdtw_sim_memory_in_use(int pinned) { return pinned ? pinned_bytes() : heap_live_bytes(); }
EXPORT int kdtw_sim_checks() { return check::enabled; }

// "name=value" lines; what is counted since the last reset.
EXPORT const char* kdtw_sim_counters() {
  static std::string text;
  std::ostringstream out;
#define X(name) out << #name << "=" << counters().name << "\n";
  SIMT_COUNTERS(X)
#undef X
  text = out.str();
  return text.c_str();
}
EXPORT void kdtw_sim_reset_counters() { counters() = {}; }

// Starts or stops counting memory requests and forgets what was counted; checked libraries.
EXPORT void kdtw_sim_count_traffic(int on) {
  settings().traffic = on != 0;
  check::traffic_report().clear();
}
EXPORT const char* kdtw_sim_traffic() { return check::traffic_report().c_str(); }
}
