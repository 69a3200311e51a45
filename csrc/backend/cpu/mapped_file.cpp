#include "backend/cpu/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>

#include "core/error.h"

namespace kdtw::cpu {

// In a list that only grows, so that the handler may walk it at any time; ranges of files that are no more are used
// again.
struct MappedRange {
  std::atomic<uintptr_t> begin = 0, end = 0;  // end 0: of no file
  std::atomic<bool> lost = false;
  MappedRange* next = nullptr;
};

namespace {

std::atomic<MappedRange*> first_range{nullptr};
std::mutex ranges_change;
struct sigaction previous;

void handle(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (MappedRange* range = first_range; info->si_code > 0 && range != nullptr; range = range->next) {
    const uintptr_t begin = range->begin, end = range->end;
    if (address < begin || address >= end) continue;
    // Zeros in its place: what read here goes on, and check() will say of what worth it is.
    range->lost = true;
    if (mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
        MAP_FAILED)
      return;
  }
  if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  sigaction(signal, &previous, nullptr);
  raise(signal);
}

MappedRange* add_range(const void* data, size_t size) {
  const std::lock_guard lock(ranges_change);
  static const bool installed = [] {
    struct sigaction action{};
    action.sa_sigaction = &handle, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return sigaction(SIGBUS, &action, &previous) == 0;
  }();
  require(installed, "the system takes no handler of SIGBUS");
  MappedRange* range = first_range;
  while (range != nullptr && range->end != 0) range = range->next;
  if (range == nullptr) {
    range = new MappedRange;
    range->next = first_range;
    first_range = range;
  }
  range->lost = false;
  range->begin = reinterpret_cast<uintptr_t>(data);
  range->end = range->begin + size;
  return range;
}

bool same(const struct timespec& a, const struct timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0 || fstat(descriptor_, &status_) != 0 || !S_ISREG(status_.st_mode)) {
    if (descriptor_ >= 0) close(descriptor_);
    throw FileChanged(concat(path, " is no file that can be read"));
  }
  size_ = static_cast<size_t>(status_.st_size);
  if (size_ == 0) return;
  void* const mapped = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (mapped == MAP_FAILED) {
    close(descriptor_);
    throw OutOfMemory(size_);
  }
  data_ = static_cast<const std::byte*>(mapped);
  range_ = add_range(data_, size_);
}

MappedFile::~MappedFile() {
  if (range_ != nullptr) {
    range_->end = 0;
    munmap(const_cast<std::byte*>(data_), size_);
  }
  close(descriptor_);
}

void MappedFile::check() const {
  struct stat now{};
  const bool known = fstat(descriptor_, &now) == 0 && now.st_size == status_.st_size &&
                     same(now.st_mtim, status_.st_mtim) && (range_ == nullptr || !range_->lost);
  if (!known)
    throw FileChanged(concat(path_, " was cut or changed while its weights were in use; load the model again"));
}

}  // namespace kdtw::cpu
