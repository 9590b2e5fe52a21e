#include "launcher/launch/attempt_record.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace carousel {
namespace {
namespace fs = std::filesystem;

constexpr size_t kMaxRecordBytes = 1 << 20;
constexpr size_t kMaxReasonBytes = 16 << 10;
constexpr int64_t kMaxRank = int64_t{1} << 31;

// Messages may quote what a broken file or peer said: JSON must be UTF-8.
std::string Dump(const nlohmann::json& json, int indent) {
  return json.dump(indent, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
}

// Host names come from machines and from files: only what can be part of a file name.
std::string FileNameOf(const std::string& host) {
  std::string name = host.empty() ? "unknown" : host;
  for (char& c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-' && c != '_') c = '_';
  }
  if (name[0] == '.') name[0] = '_';
  return name;
}

template <typename T>
bool Take(const nlohmann::json& object, const char* name, T* value) {
  const auto found = object.find(name);
  if (found == object.end()) return true;
  if constexpr (std::is_same_v<T, std::string>) {
    if (!found->is_string()) return false;
    *value = found->template get<std::string>();
  } else if constexpr (std::is_same_v<T, double>) {
    if (!found->is_number()) return false;
    *value = found->template get<double>();
    if (!std::isfinite(*value)) return false;
  } else {
    if (!found->is_number_integer()) return false;
    *value = found->template get<T>();
  }
  return true;
}

std::string Errno(const std::string& what, const std::string& path) {
  return absl::StrCat(what, " ", path, ": ", std::strerror(errno));
}
}  // namespace

std::string ToJson(const RankEnd& end) {
  nlohmann::json json = {{"rank", end.rank},
                         {"host", end.host},
                         {"pid", end.pid},
                         {"exit_code", end.exit_code},
                         {"reason", end.reason.substr(0, kMaxReasonBytes)},
                         {"gpu", end.gpu},
                         {"step", end.step},
                         {"began", end.began},
                         {"ended", end.ended},
                         {"suspect_hosts", end.suspect_hosts}};
  return Dump(json, -1);
}

absl::StatusOr<RankEnd> ParseRankEnd(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("the record of a rank's end is no JSON object");
  RankEnd end;
  int64_t exit_code = 0;
  const bool typed = Take(json, "rank", &end.rank) && Take(json, "host", &end.host) &&
                     Take(json, "pid", &end.pid) && Take(json, "exit_code", &exit_code) &&
                     Take(json, "reason", &end.reason) && Take(json, "gpu", &end.gpu) &&
                     Take(json, "step", &end.step) && Take(json, "began", &end.began) &&
                     Take(json, "ended", &end.ended);
  if (!typed || !json.contains("rank") || !json.contains("exit_code")) {
    return absl::InvalidArgumentError(
        "the record of a rank's end lacks a field, or one is of another type than it should be");
  }
  if (end.rank < 0 || end.rank > kMaxRank || exit_code < 0 || exit_code > 255 || end.step < -1) {
    return absl::InvalidArgumentError(absl::StrCat("the record of a rank's end says rank ", end.rank,
                                                   ", exit code ", exit_code, ", step ", end.step));
  }
  end.exit_code = static_cast<int>(exit_code);
  if (const auto suspects = json.find("suspect_hosts"); suspects != json.end()) {
    if (!suspects->is_array()) return absl::InvalidArgumentError("suspect_hosts is no array");
    for (const auto& host : *suspects) {
      if (!host.is_string()) return absl::InvalidArgumentError("suspect_hosts holds what is no string");
      end.suspect_hosts.push_back(host.get<std::string>());
    }
  }
  return end;
}

std::string RankEndPath(const std::string& attempt_dir, int64_t rank) {
  return absl::StrFormat("%s/ends/rank-%05d.json", attempt_dir, rank);
}

std::string RankLogPath(const std::string& attempt_dir, const std::string& host, int64_t rank) {
  return absl::StrCat(attempt_dir, "/rank_logs/", FileNameOf(host), ".", rank, ".log");
}

absl::Status WriteFileWhole(const std::string& path, const std::string& text) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
                      S_IRUSR | S_IWUSR | S_IRGRP);
  if (fd < 0) return absl::UnavailableError(Errno("cannot make", temporary));
  absl::string_view rest = text;
  bool written = true;
  while (written && !rest.empty()) {
    const ssize_t n = write(fd, rest.data(), rest.size());
    if (n > 0) {
      rest.remove_prefix(static_cast<size_t>(n));
    } else {
      written = n < 0 && errno == EINTR;
    }
  }
  absl::Status status = written ? absl::OkStatus() : absl::UnavailableError(Errno("cannot write", temporary));
  if (close(fd) != 0 && status.ok()) status = absl::UnavailableError(Errno("cannot write", temporary));
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0) {
    status = absl::UnavailableError(Errno("cannot rename to", path));
  }
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

absl::Status WriteRankEnd(const std::string& attempt_dir, const RankEnd& end) {
  return WriteFileWhole(RankEndPath(attempt_dir, end.rank), ToJson(end) + "\n");
}

absl::StatusOr<RankEnd> ReadRankEnd(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(path);
  std::string text(kMaxRecordBytes, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return ParseRankEnd(text);
}

std::vector<RankEnd> ReadRankEnds(const std::string& attempt_dir) {
  std::vector<RankEnd> ends;
  std::error_code error;
  fs::directory_iterator entries(attempt_dir + "/ends", error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string path = entries->path().string();
    if (entries->path().extension() != ".json") continue;
    absl::StatusOr<RankEnd> end = ReadRankEnd(path);
    // A record under the name of another rank is nobody's.
    if (end.ok() && RankEndPath(attempt_dir, end->rank) == path) ends.push_back(*std::move(end));
  }
  std::sort(ends.begin(), ends.end(), [](const RankEnd& a, const RankEnd& b) { return a.rank < b.rank; });
  return ends;
}

std::string ToJson(const AttemptExit& exit) {
  nlohmann::ordered_json json;
  json["attempt"] = exit.attempt;
  json["exit_code"] = exit.exit_code;
  json["reason"] = exit.reason;
  json["rank"] = exit.rank;
  json["host"] = exit.host;
  json["gpu"] = exit.gpu;
  json["log"] = exit.log;
  json["step"] = exit.step;
  json["last_checkpoint"] = exit.last_checkpoint;
  json["last_good_checkpoint"] = exit.last_good_checkpoint;
  json["began"] = exit.began;
  json["ended"] = exit.ended;
  json["ranks"] = exit.ranks;
  json["hosts"] = exit.hosts;
  json["suspect_hosts"] = exit.suspect_hosts;
  json["launcher_status"] = exit.launcher_status;
  json["next"] = exit.next;
  return json.dump(2, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace) + "\n";
}

std::vector<std::string> RecordedEnvironment(const std::vector<std::string>& environment) {
  constexpr const char* kPrefixes[] = {"CAROUSEL_", "OMPI_MCA_", "PMIX_MCA_", "NCCL_",  "UCX_", "FI_",
                                       "CUDA_",     "NVIDIA_",   "OMP_",      "SLURM_", "MKL_", "DNNL_"};
  constexpr const char* kNames[] = {"PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "TZ",
                                    "LANG", "LC_ALL",          "TMPDIR"};
  constexpr const char* kSecrets[] = {"SECRET",     "TOKEN",   "PASSW",  "CREDENTIAL", "APIKEY", "API_KEY",
                                      "ACCESS_KEY", "PRIVATE", "COOKIE", "JWT",        "_AUTH"};
  std::vector<std::string> recorded;
  for (const std::string& variable : environment) {
    const std::string name = variable.substr(0, variable.find('='));
    bool wanted = std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
    for (const char* prefix : kPrefixes) wanted |= absl::StartsWith(name, prefix);
    const std::string upper = absl::AsciiStrToUpper(name);
    for (const char* secret : kSecrets) wanted &= !absl::StrContains(upper, secret);
    if (wanted) recorded.push_back(variable);
  }
  std::sort(recorded.begin(), recorded.end());
  return recorded;
}
}  // namespace carousel
