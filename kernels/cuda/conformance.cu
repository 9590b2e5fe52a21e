// conformance.cu - compares the PTX wrappers with the emulation.
//   conformance --write FILE   random operands through every function of device.h; stores operands and
//   results conformance --check FILE   runs the stored operands here and compares the results
// The same sources make one program with nvcc and one with the host compiler: write with one, check with the
// other, both ways. Cases that the GPU at hand cannot run are named and skipped. Exit code 0 only if
// everything else agrees.
#include "kernels/cuda/conformance.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace carousel::conformance {
namespace {

constexpr char kMagic[] = "carousel conformance 1\n";

uint64_t Fnv1a(const std::string& bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}
std::vector<Case> AllCases() {
  std::vector<Case> cases;
  AppendArithmeticCases(cases);
  AppendWarpCases(cases);
  AppendHopperCases(cases);
  AppendWgmmaCases(cases);
  return cases;
}

// Until the case's kernels have ended. One that hangs leaves no device for the others: ends the program.
cudaError_t WaitFor(const Case& c) {
  constexpr auto kAtMost = std::chrono::seconds(60);
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    const cudaError_t status = cudaStreamQuery(nullptr);
    if (status != cudaErrorNotReady) return status;
    if (std::chrono::steady_clock::now() - start < kAtMost) continue;
    std::printf("FAIL %s: has not ended after %d s\n", c.name.c_str(), static_cast<int>(kAtMost.count()));
    std::fflush(stdout);
    std::_Exit(1);
  }
}

// Results of one case on this device; empty and *error if the CUDA runtime reports one.
std::string RunCase(const Case& c, const std::string& operands, std::string* error) {
  void *in = nullptr, *out = nullptr;
  std::string results(static_cast<size_t>(c.result_bytes), '\0');
  const size_t in_bytes = operands.size(), out_bytes = results.size();
  cudaError_t status = cudaMalloc(&in, in_bytes + 1);  // never empty
  if (status == cudaSuccess) status = cudaMalloc(&out, out_bytes);
  if (status == cudaSuccess) status = cudaMemcpy(in, operands.data(), in_bytes, cudaMemcpyHostToDevice);
  if (status == cudaSuccess) status = cudaMemset(out, 0xff, out_bytes);
  if (status == cudaSuccess) status = c.run(out, in);
  if (status == cudaSuccess) status = WaitFor(c);
  if (status == cudaSuccess) status = cudaMemcpy(results.data(), out, out_bytes, cudaMemcpyDeviceToHost);
  if (status != cudaSuccess) {
    *error = cudaGetErrorString(status);
    results.clear();
  }
  cudaFree(in);
  cudaFree(out);
  return results;
}

bool Agrees(const Tolerance& t, float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (a == b) return true;
  return std::abs(static_cast<double>(a) - static_cast<double>(b)) <=
         t.absolute + t.relative * std::abs(static_cast<double>(a));
}
// Empty if they agree; otherwise where they do not.
std::string Compare(const Case& c, const std::string& stored, const std::string& here) {
  char text[200];
  if (c.tolerance.kind == Tolerance::kExact) {
    for (size_t i = 0; i < stored.size(); ++i) {
      if (stored[i] == here[i]) continue;
      std::snprintf(text, sizeof text, "byte %zu is %02x in the file, %02x here", i,
                    static_cast<unsigned char>(stored[i]), static_cast<unsigned char>(here[i]));
      return text;
    }
    return {};
  }
  for (size_t i = 0; i + 4 <= stored.size(); i += 4) {
    float a, b;
    std::memcpy(&a, stored.data() + i, 4);
    std::memcpy(&b, here.data() + i, 4);
    if (Agrees(c.tolerance, a, b)) continue;
    std::snprintf(text, sizeof text, "float %zu is %.9g in the file, %.9g here", i / 4,
                  static_cast<double>(a), static_cast<double>(b));
    return text;
  }
  return {};
}

int ComputeCapability() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return 0;
  return major;
}

void Put(std::string& file, const std::string& bytes) {
  const uint64_t n = bytes.size();
  file.append(reinterpret_cast<const char*>(&n), sizeof n);
  file += bytes;
}
bool Get(const std::string& file, size_t& at, std::string* bytes) {
  uint64_t n = 0;
  if (file.size() - at < sizeof n) return false;
  std::memcpy(&n, file.data() + at, sizeof n);
  at += sizeof n;
  if (n > file.size() - at) return false;
  *bytes = file.substr(at, n);
  at += n;
  return true;
}

// File: kMagic, then name, operands and results of each case, then a hash of all that.
int WriteFile(const char* path, const std::vector<Case>& cases, int capability) {
  std::string file = kMagic;
  Random random(20240501);
  int written = 0, failed = 0;
  for (const Case& c : cases) {
    if (!c.RunsOn(capability)) {
      std::printf("SKIP %s: needs compute capability 9\n", c.name.c_str());
      continue;
    }
    std::string operands(static_cast<size_t>(c.operand_bytes), '\0'), error;
    if (c.fill != nullptr) c.fill(random, operands.data());
    const std::string results = RunCase(c, operands, &error);
    if (!error.empty()) {
      std::printf("FAIL %s: %s\n", c.name.c_str(), error.c_str());
      ++failed;
      break;  // an error of a kernel makes the device useless
    }
    Put(file, c.name);
    Put(file, operands);
    Put(file, results);
    ++written;
  }
  const uint64_t hash = Fnv1a(file);
  file.append(reinterpret_cast<const char*>(&hash), sizeof hash);
  std::ofstream out(path, std::ios::binary);
  out.write(file.data(), static_cast<std::streamsize>(file.size()));
  out.close();
  if (!out) {
    std::printf("FAIL cannot write %s\n", path);
    return 1;
  }
  std::printf("%d cases written, %d failed\n", written, failed);
  return failed == 0 ? 0 : 1;
}

int CheckFile(const char* path, const std::vector<Case>& cases, int capability) {
  std::ifstream in(path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t magic = std::strlen(kMagic);
  uint64_t hash = 0;
  const bool has_frame = in && file.size() >= magic + sizeof hash && file.compare(0, magic, kMagic) == 0;
  if (has_frame) std::memcpy(&hash, file.data() + file.size() - sizeof hash, sizeof hash);
  const std::string body = has_frame ? file.substr(0, file.size() - sizeof hash) : std::string();
  if (!has_frame || hash != Fnv1a(body)) {
    std::printf("FAIL %s is not a complete file of this program; write it again\n", path);
    return 1;
  }
  int agreed = 0, failed = 0, skipped = 0;
  std::vector<bool> seen(cases.size(), false);
  for (size_t at = magic; at < body.size();) {
    std::string name, operands, stored, error;
    if (!Get(body, at, &name) || !Get(body, at, &operands) || !Get(body, at, &stored)) {
      std::printf("FAIL %s is cut off\n", path);
      return 1;
    }
    size_t i = 0;
    while (i < cases.size() && cases[i].name != name) ++i;
    if (i == cases.size() || operands.size() != static_cast<size_t>(cases[i].operand_bytes) ||
        stored.size() != static_cast<size_t>(cases[i].result_bytes)) {
      std::printf("FAIL %s: this program has no such case; write the file with the same sources\n",
                  name.c_str());
      ++failed;
      continue;
    }
    seen[i] = true;
    if (!cases[i].RunsOn(capability)) {
      std::printf("SKIP %s: needs compute capability 9\n", name.c_str());
      ++skipped;
      continue;
    }
    const std::string here = RunCase(cases[i], operands, &error);
    if (error.empty()) error = Compare(cases[i], stored, here);
    if (error.empty()) {
      ++agreed;
    } else {
      std::printf("FAIL %s: %s\n", name.c_str(), error.c_str());
      ++failed;
    }
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    if (seen[i]) continue;
    std::printf("SKIP %s: not in the file\n", cases[i].name.c_str());
    ++skipped;
  }
  std::printf("%d cases agree, %d differ, %d skipped\n", agreed, failed, skipped);
  return failed == 0 && agreed > 0 ? 0 : 1;
}
}  // namespace
}  // namespace carousel::conformance

int main(int argc, char** argv) {
  namespace conformance = carousel::conformance;
  const std::string mode = argc == 3 ? argv[1] : "";
  if (mode != "--write" && mode != "--check") {
    std::printf("usage: %s --write FILE | --check FILE\n", argv[0]);
    return 2;
  }
  const int capability = conformance::ComputeCapability();
  if (capability == 0) {
    std::printf("FAIL no CUDA device: %s\n", cudaGetErrorString(cudaGetLastError()));
    return 1;
  }
  const std::vector<conformance::Case> cases = conformance::AllCases();
  return mode == "--write" ? conformance::WriteFile(argv[2], cases, capability)
                           : conformance::CheckFile(argv[2], cases, capability);
}
