// The structure of the house, enforced: which folder may include which, which third-party headers stand
// where, where ranks are visible, how long a file may be.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {
namespace fs = std::filesystem;

constexpr int kMaxLines = 500;
const char* const kFolders[] = {"core", "kernels", "parallel", "configs", "checkpoints", "launcher", "tests"};

struct Include {
  std::string path;  // what stands between the quotes or brackets
  int line = 0;
};
struct SourceFile {
  std::string path;  // relative to the root, e.g. "core/tensor.h"
  std::vector<std::string> lines;
  std::vector<Include> includes;
  std::string folder() const { return path.substr(0, path.find('/')); }
};

bool IsCode(const fs::path& path) {
  const std::string e = path.extension().string();
  return e == ".h" || e == ".cc" || e == ".cu" || e == ".cuh";
}

const std::vector<SourceFile>& Sources() {
  static const std::vector<SourceFile>& files = *new std::vector<SourceFile>([] {
    std::vector<SourceFile> result;
    const std::regex include_line(R"re(^\s*#\s*include\s*[<"]([^>"]+)[>"])re");
    for (const char* folder : kFolders) {
      for (const auto& entry : fs::recursive_directory_iterator(fs::path(CAROUSEL_SOURCE_DIR) / folder)) {
        if (!entry.is_regular_file() || !IsCode(entry.path())) continue;
        SourceFile file;
        file.path = fs::relative(entry.path(), CAROUSEL_SOURCE_DIR).generic_string();
        std::ifstream in(entry.path());
        for (std::string line; std::getline(in, line);) {
          std::smatch match;
          file.lines.push_back(line);
          if (std::regex_search(line, match, include_line)) {
            file.includes.push_back({match[1], static_cast<int>(file.lines.size())});
          }
        }
        result.push_back(std::move(file));
      }
    }
    return result;
  }());
  return files;
}

std::string At(const SourceFile& file, const Include& include) {
  return file.path + ":" + std::to_string(include.line) + " includes " + include.path;
}
bool StartsWith(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

// Which of our folders each folder may include.
const std::map<std::string, std::set<std::string>>& AllowedFolders() {
  static const auto& allowed = *new std::map<std::string, std::set<std::string>>{
      {"core", {"core"}},
      {"kernels", {"core", "kernels"}},
      {"parallel", {"core", "parallel"}},
      {"configs", {"core", "configs"}},
      {"checkpoints", {"core", "checkpoints"}},
      {"launcher", {"core", "kernels", "parallel", "configs", "checkpoints", "launcher"}},
      {"tests", {"core", "kernels", "parallel", "configs", "checkpoints", "launcher", "tests"}},
  };
  return allowed;
}

struct ThirdParty {
  const char* name;                  // what the include path starts with
  std::vector<std::string> allowed;  // path prefixes that may include it
};
const std::vector<ThirdParty>& ThirdPartyRules() {
  static const auto& rules = *new std::vector<ThirdParty>{
      {"spdlog/", {"core/base/log.cc"}},
      {"Random123/", {"core/base/random.h"}},
      {"absl/",
       {"core/base/status_macros.h", "core/base/status_exit_code.", "core/data/", "core/text/", "core/train/",
        "parallel/", "configs/", "checkpoints/", "launcher/", "tests/"}},
      {"nlohmann/", {"core/text/", "core/data/", "checkpoints/", "launcher/", "tests/"}},
      {"google/protobuf/", {"configs/", "checkpoints/", "launcher/", "tests/"}},
      {"CLI/", {"launcher/", "tests/"}},
      {"hwloc", {"launcher/"}},
      {"mpi.h", {"parallel/mpi_communicator", "launcher/environment.cc", "tests/"}},
      {"nccl.h", {"parallel/nccl_communicator", "kernels/simt/"}},
      {"oneapi/", {"kernels/cpu/"}},
      {"dnnl", {"kernels/cpu/"}},
      {"cuda", {"kernels/cuda/", "kernels/simt/"}},
      {"nvtx", {"kernels/cuda/nvtx.h"}},
      {"cublas", {"kernels/cuda/"}},
      {"cudnn", {"kernels/cuda/", "kernels/bench/"}},
      {"isa-l", {"checkpoints/"}},
      {"gtest/", {"tests/"}},
      {"gmock/", {"tests/"}},
  };
  return rules;
}

TEST(Layering, FindsTheSources) { EXPECT_GT(Sources().size(), 60u); }

TEST(Layering, FoldersIncludeOnlyWhatTheTableAllows) {
  for (const SourceFile& file : Sources()) {
    for (const Include& include : file.includes) {
      const std::string target = include.path.substr(0, include.path.find('/'));
      if (include.path.find('/') == std::string::npos || AllowedFolders().count(target) == 0) continue;
      EXPECT_TRUE(AllowedFolders().at(file.folder()).count(target)) << At(file, include);
    }
  }
}

TEST(Layering, ThirdPartyHeadersStandOnlyWhereTheyBelong) {
  for (const SourceFile& file : Sources()) {
    for (const Include& include : file.includes) {
      for (const ThirdParty& rule : ThirdPartyRules()) {
        if (!StartsWith(include.path, rule.name)) continue;
        bool allowed = false;
        for (const std::string& prefix : rule.allowed) allowed |= StartsWith(file.path, prefix);
        EXPECT_TRUE(allowed) << At(file, include);
      }
    }
  }
}

// Everything that a header includes, transitively, within the project.
void Collect(const std::string& path, std::set<std::string>* seen, std::set<std::string>* outside) {
  if (!seen->insert(path).second) return;
  for (const SourceFile& file : Sources()) {
    if (file.path != path) continue;
    for (const Include& include : file.includes) {
      if (AllowedFolders().count(include.path.substr(0, include.path.find('/')))) {
        Collect(include.path, seen, outside);
      } else {
        outside->insert(include.path);
      }
    }
  }
}

TEST(Layering, TensorAndOpsReachNeitherAbseilNorProtobuf) {
  for (const char* header : {"core/tensor.h", "core/ops.h", "core/device.h"}) {
    std::set<std::string> seen, outside;
    Collect(header, &seen, &outside);
    EXPECT_GT(seen.size(), 2u) << header;
    for (const std::string& include : outside) {
      EXPECT_FALSE(StartsWith(include, "absl/") || StartsWith(include, "google/"))
          << header << " reaches " << include;
    }
  }
}

TEST(Layering, RanksAreInvisibleToLayers) {
  const std::regex rank_word(R"(\b(Communicator|Mesh)\b)");
  for (const SourceFile& file : Sources()) {
    if (!StartsWith(file.path, "core/model/") || StartsWith(file.path, "core/model/language_model")) continue;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string code = file.lines[i].substr(0, file.lines[i].find("//"));
      EXPECT_FALSE(std::regex_search(code, rank_word)) << file.path << ":" << i + 1;
    }
  }
}

TEST(Layering, EnvironmentVariablesAreReadInOnePlace) {
  const std::regex call(R"(\bgetenv\s*\()");
  for (const SourceFile& file : Sources()) {
    if (file.path == "launcher/environment.cc" || file.folder() == "tests") continue;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      EXPECT_FALSE(std::regex_search(file.lines[i], call)) << file.path << ":" << i + 1;
    }
  }
}

// Code without comments and what stands between quotes.
std::string CodeOf(const std::string& line) {
  std::string code;
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (!quoted && line.compare(i, 2, "//") == 0) break;
    if (line[i] == '"') quoted = !quoted;
    if (!quoted) code += line[i];
  }
  return code;
}

TEST(Layering, KernelsReachTheHardwareThroughTheDeviceHeaderAlone) {
  const std::regex assembly(R"(\basm\b)"), launch("<<<"), groups(R"(\bcooperative_groups\b)"),
      shared(R"(\b__shared__\b)");
  int found = 0;
  for (const SourceFile& file : Sources()) {
    // fiber.cc switches stacks of the host; tile_permission.h and simd/ are the CPU backend's.
    if (file.path == "kernels/simt/fiber.cc" || StartsWith(file.path, "kernels/cpu/")) continue;
    const bool ptx =
        file.path == "kernels/cuda/device_ptx.h" || file.path == "kernels/cuda/device_ptx_wgmma.h";
    const bool header = ptx || file.path == "kernels/simt/device_emulation.h" ||
                        StartsWith(file.path, "kernels/simt/include/");
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string code = CodeOf(file.lines[i]), at = file.path + ":" + std::to_string(i + 1);
      const bool has_assembly = std::regex_search(code, assembly);
      found += ptx && has_assembly;
      EXPECT_FALSE(has_assembly && !ptx) << at;
      EXPECT_FALSE(std::regex_search(code, launch) && !ptx) << at;
      EXPECT_FALSE(std::regex_search(code, groups) && !ptx) << at;
      EXPECT_FALSE(std::regex_search(code, shared) && !header) << at;
    }
  }
  EXPECT_GT(found, 20);
}

TEST(Layering, FilesStayShort) {
  for (const SourceFile& file : Sources()) {
    EXPECT_LE(static_cast<int>(file.lines.size()), kMaxLines) << file.path << ": split it";
  }
}

TEST(Layering, TheTopLevelHoldsNothingElse) {
  const std::set<std::string> allowed = {
      "CMakeLists.txt", "CMakePresets.json", "LICENSE", "README.md", "core", "kernels", "parallel",
      "launcher", "configs", "checkpoints", "tests",
      // Made by builds and runs, never committed:
      "build", "build-cuda", "build-asan", "build-tsan", "build-portable", "runs", "data"};
  for (const auto& entry : fs::directory_iterator(CAROUSEL_SOURCE_DIR)) {
    const std::string name = entry.path().filename().string();
    if (name[0] == '.') continue;
    EXPECT_TRUE(allowed.count(name)) << "unexpected at the top level: " << name;
  }
}
}  // namespace
