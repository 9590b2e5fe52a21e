#include "launcher/preflight/preflight_read.h"

#include <dlfcn.h>
#include <gnu/libc-version.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/cpu/simd_level.h"

namespace carousel {
namespace {
constexpr int64_t kMaxFileBytes = int64_t{1} << 22;
// Version 1 of control groups says "no limit" with the largest multiple of a page.
constexpr int64_t kNoCgroupLimit = int64_t{1} << 60;

// The value of the first line "key : value" with this key.
std::string CpuInfo(const std::string& text, const std::string& key) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (absl::StripAsciiWhitespace(parts.first) == key)
      return std::string(absl::StripAsciiWhitespace(parts.second));
  }
  return "";
}

std::string SimdText(const std::string& cpuinfo) {
  std::string text;
  switch (cpu::DetectSimdLevel()) {
    case cpu::SimdLevel::kBase:
      text = "no vector extensions beyond the base";
      break;
    case cpu::SimdLevel::kV3:
      text = "AVX2";
      break;
    case cpu::SimdLevel::kV4:
      text = "AVX-512";
      break;
  }
  const std::string flags = absl::StrCat(" ", CpuInfo(cpuinfo, "flags"), " ");
  if (absl::StrContains(flags, " avx512_bf16 ")) text += ", bf16";
  if (absl::StrContains(flags, " amx_bf16 ")) text += ", AMX";
  return text;
}

int64_t SoftLimit(int resource) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return -1;
  return limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur > static_cast<rlim_t>(INT64_MAX)
             ? kUnlimited
             : static_cast<int64_t>(limit.rlim_cur);
}

std::vector<int64_t> AllowedCpus() {
  std::vector<int64_t> cpus;
  // Machines may have more logical CPUs than a cpu_set_t holds.
  for (int count = 1024; count <= 1 << 16; count *= 4) {
    cpu_set_t* const set = CPU_ALLOC(static_cast<size_t>(count));
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(count));
    CPU_ZERO_S(bytes, set);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; known && cpu < count; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (known) break;
  }
  return cpus;
}

std::vector<NetworkInterface> ReadInterfaces() {
  std::vector<NetworkInterface> interfaces;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return interfaces;
  for (const ifaddrs* entry = all; entry != nullptr; entry = entry->ifa_next) {
    const std::string name = entry->ifa_name;
    auto known = std::find_if(interfaces.begin(), interfaces.end(),
                              [&](const NetworkInterface& i) { return i.name == name; });
    if (known == interfaces.end()) known = interfaces.insert(known, {.name = name});
    known->up |= (entry->ifa_flags & IFF_UP) != 0;
    if (entry->ifa_addr == nullptr) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    std::array<char, NI_MAXHOST> address{};
    const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (getnameinfo(entry->ifa_addr, length, address.data(), address.size(), nullptr, 0, NI_NUMERICHOST) == 0)
      known->addresses.emplace_back(address.data());
  }
  freeifaddrs(all);
  std::sort(interfaces.begin(), interfaces.end(),
            [](const NetworkInterface& a, const NetworkInterface& b) { return a.name < b.name; });
  return interfaces;
}

bool HoldsFiles(const std::string& directory) {
  std::error_code ignored;
  const std::filesystem::directory_iterator begin(directory, ignored), end;
  return !ignored && begin != end;
}

int64_t NumberIn(const std::string& path) {
  int64_t number = -1;
  const std::optional<std::string> text = ReadSmallFile(path);
  return text.has_value() && absl::SimpleAtoi(*text, &number) ? number : -1;
}

// A function of a library that this process has loaded; null if there is none of this name.
template <class Function>
Function Loaded(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}
}  // namespace

std::optional<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  std::string text(static_cast<size_t>(1) << 16, '\0');
  std::string all;
  while (static_cast<int64_t>(all.size()) < kMaxFileBytes) {
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    all.append(text, 0, static_cast<size_t>(file.gcount()));
    if (!file) break;
  }
  if (file.bad()) return std::nullopt;
  while (!all.empty() && (all.back() == '\n' || all.back() == '\0')) all.pop_back();
  return all;
}

int64_t MeminfoBytes(const std::string& meminfo, const std::string& field) {
  for (const absl::string_view line : absl::StrSplit(meminfo, '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(": \t"), absl::SkipEmpty());
    int64_t number = 0;
    if (words.size() < 2 || words[0] != field || !absl::SimpleAtoi(words[1], &number)) continue;
    return words.size() > 2 && words[2] == "kB" ? number * 1024 : number;
  }
  return -1;
}

CgroupMemory ReadCgroupMemory(const SystemPaths& paths) {
  CgroupMemory lowest;
  const auto consider = [&](int64_t limit, int64_t used) {
    if (limit < 0 || limit >= kNoCgroupLimit) return;
    if (lowest.limit_bytes >= 0 && lowest.limit_bytes <= limit) return;
    lowest = {.limit_bytes = limit, .used_bytes = used};
  };
  const std::string root = paths.sys + "/fs/cgroup";
  // In a container the own group is often shown as the root, so the root's files count in any case.
  std::string unified = "/", memory = "/";
  for (const absl::string_view line :
       absl::StrSplit(ReadSmallFile(paths.proc + "/self/cgroup").value_or(""), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3 || absl::StrContains(parts[2], "..")) continue;
    if (parts[1].empty()) unified = parts[2];
    for (const absl::string_view controller : absl::StrSplit(parts[1], ',')) {
      if (controller == "memory") memory = parts[2];
    }
  }
  // A limit holds for all groups below.
  const auto climb = [&](std::string group, const std::string& base, const char* limit, const char* used) {
    while (true) {
      const std::string directory = group == "/" ? base : base + group;
      consider(NumberIn(absl::StrCat(directory, "/", limit)), NumberIn(absl::StrCat(directory, "/", used)));
      if (group == "/" || group.empty()) break;
      group = group.substr(0, group.rfind('/'));
      if (group.empty()) group = "/";
    }
  };
  climb(unified, root, "memory.max", "memory.current");
  climb(memory, root + "/memory", "memory.limit_in_bytes", "memory.usage_in_bytes");
  return lowest;
}

std::vector<int64_t> OnePerCore(const std::vector<int64_t>& allowed, const SystemPaths& paths) {
  std::vector<int64_t> cores;
  std::set<std::string> seen;
  for (const int64_t cpu : allowed) {
    const std::string topology = absl::StrCat(paths.sys, "/devices/system/cpu/cpu", cpu, "/topology/");
    const std::optional<std::string> siblings = ReadSmallFile(topology + "thread_siblings_list");
    if (!siblings.has_value() || seen.insert(*siblings).second) cores.push_back(cpu);
  }
  return cores;
}

MachineFacts ReadMachineFacts(const SystemPaths& paths) {
  MachineFacts facts;
  utsname system{};
  if (uname(&system) == 0) facts.kernel = absl::StrCat(system.sysname, " ", system.release);
  const std::string cpuinfo = ReadSmallFile(paths.proc + "/cpuinfo").value_or("");
  facts.cpu = CpuInfo(cpuinfo, "model name");
  facts.simd = SimdText(cpuinfo);
  facts.cores = OnePerCore(AllowedCpus(), paths);
  const int64_t num_online = sysconf(_SC_NPROCESSORS_ONLN);
  std::vector<int64_t> all;
  for (int64_t cpu = 0; cpu < num_online; ++cpu) all.push_back(cpu);
  facts.machine_cores = static_cast<int64_t>(OnePerCore(all, paths).size());

  const std::string meminfo = ReadSmallFile(paths.proc + "/meminfo").value_or("");
  facts.memory_bytes = MeminfoBytes(meminfo, "MemTotal");
  facts.memory_available_bytes = MeminfoBytes(meminfo, "MemAvailable");
  const CgroupMemory group = ReadCgroupMemory(paths);
  facts.cgroup_limit_bytes = group.limit_bytes;
  facts.cgroup_used_bytes = group.used_bytes;

  facts.open_files = SoftLimit(RLIMIT_NOFILE);
  facts.locked_bytes = SoftLimit(RLIMIT_MEMLOCK);
  facts.file_bytes = SoftLimit(RLIMIT_FSIZE);
  facts.address_bytes = SoftLimit(RLIMIT_AS);
  facts.core_bytes = SoftLimit(RLIMIT_CORE);
  facts.processes = SoftLimit(RLIMIT_NPROC);
  facts.core_pattern = ReadSmallFile(paths.proc + "/sys/kernel/core_pattern").value_or("");
  struct statvfs shm {};
  if (statvfs(paths.shm.c_str(), &shm) == 0) {
    facts.shm_total_bytes = static_cast<int64_t>(shm.f_blocks * shm.f_frsize);
    facts.shm_free_bytes = static_cast<int64_t>(shm.f_bavail * shm.f_frsize);
  }
  facts.interfaces = ReadInterfaces();
  facts.infiniband = HoldsFiles(paths.sys + "/class/infiniband");
  facts.root = geteuid() == 0;
  return facts;
}

std::map<std::string, std::string> ReadLibraries(const SystemPaths& paths) {
  std::map<std::string, std::string> libraries;
  libraries["C library"] = absl::StrCat("glibc ", gnu_get_libc_version());
  if (const auto version = Loaded<int (*)(char*, int*)>("MPI_Get_library_version")) {
    std::array<char, 16384> text{};  // more than any MPI's MPI_MAX_LIBRARY_VERSION_STRING
    int length = 0;
    if (version(text.data(), &length) == 0) {
      const std::string all(text.data());
      libraries["MPI"] = all.substr(0, all.find_first_of(",\n"));
    }
  }
  if (const auto version = Loaded<int (*)(int*)>("ncclGetVersion")) {
    int number = 0;
    if (version(&number) == 0) {
      libraries["NCCL"] = absl::StrCat(number / 10000, ".", number / 100 % 100, ".", number % 100);
    }
  }
  if (const auto version = Loaded<int (*)(int*)>("cudaRuntimeGetVersion")) {
    int number = 0;
    if (version(&number) == 0) {
      libraries["CUDA runtime"] = absl::StrCat(number / 1000, ".", number / 10 % 100);
    }
  }
  // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun ...".
  const std::string module = ReadSmallFile(paths.proc + "/driver/nvidia/version").value_or("");
  for (const absl::string_view word : absl::StrSplit(module, absl::ByAnyChar(" \t\n"), absl::SkipEmpty())) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(word[0])) || !absl::StrContains(word, '.')) continue;
    libraries["NVIDIA driver"] = std::string(word);
    break;
  }
  return libraries;
}

std::string FindProgram(const std::string& name, const std::string& path_variable) {
  for (const absl::string_view directory : absl::StrSplit(path_variable, ':', absl::SkipEmpty())) {
    const std::string path = absl::StrCat(directory, "/", name);
    std::error_code ignored;
    if (std::filesystem::is_regular_file(path, ignored) && access(path.c_str(), X_OK) == 0) return path;
  }
  return "";
}
}  // namespace carousel
