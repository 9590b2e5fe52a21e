#include "launcher/report/run_history.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace carousel {
namespace {
using Json = nlohmann::json;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kMaxLineBytes = 1 << 26;  // longer ones are not ours

double NumberIn(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : kNan;
}
// 0 for what is not a number of a step, a count, ...
int64_t CountIn(const Json& object, const char* key) {
  const double value = NumberIn(object, key);
  return value >= 0 && value < 9e18 ? static_cast<int64_t>(value) : 0;
}
std::string TextIn(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}
const Json* ObjectIn(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_object() ? &*found : nullptr;
}
const Json* ListIn(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_array() ? &*found : nullptr;
}
ValueStats StatsIn(const Json& json, const char* key) {
  const Json* object = ObjectIn(json, key);
  if (object == nullptr) return {};
  const double mean = NumberIn(*object, "mean");
  return {.count = std::isfinite(mean) ? 1 : 0,
          .min = NumberIn(*object, "min"),
          .mean = mean,
          .max = NumberIn(*object, "max"),
          .rms = NumberIn(*object, "rms"),
          .below = NumberIn(*object, "below"),
          .above = NumberIn(*object, "above"),
          .beyond = NumberIn(*object, "beyond")};
}
template <class Item>
void AddNewest(Item item, size_t max_items, std::vector<Item>* list) {
  list->push_back(std::move(item));
  if (list->size() > max_items) list->erase(list->begin());
}
RankTimings::Rank RankIn(const Json& json) {
  return {.rank = CountIn(json, "rank"),
          .host = TextIn(json, "host").substr(0, 200),
          .seconds = NumberIn(json, "seconds"),
          .percent_over = NumberIn(json, "percent_over")};
}
}  // namespace

// The numbers of a step's line.
struct RunHistory::Scanned {
  double step = kNan, tokens = kNan, loss = kNan, grad_norm = kNan, lr = kNan, seconds = kNan,
         wall_seconds = kNan, data_wait = kNan, communication = kNan, checkpoint = kNan, memory = kNan,
         flops = kNan, mfu = kNan;
  bool skipped = false;
  bool valid() const { return step >= 0 && step < 9e15 && std::floor(step) == step; }

  double* Find(std::string_view key) {
    if (key == "step") return &step;
    if (key == "tokens") return &tokens;
    if (key == "loss") return &loss;
    if (key == "grad_norm") return &grad_norm;
    if (key == "lr") return &lr;
    if (key == "seconds") return &seconds;
    if (key == "wall_seconds") return &wall_seconds;
    if (key == "data_wait_seconds") return &data_wait;
    if (key == "communication_seconds") return &communication;
    if (key == "checkpoint_seconds") return &checkpoint;
    if (key == "memory_bytes") return &memory;
    if (key == "flops_per_second") return &flops;
    if (key == "mfu") return &mfu;
    return nullptr;
  }

  // Most lines are flat objects as we write them: no escapes, nothing nested, no spaces. Several times faster
  // than a general parser, which is asked about all others (false).
  bool ScanFlat(std::string_view line) {
    if (line.size() < 2 || line.front() != '{' || line.back() != '}') return false;
    const char* at = line.data() + 1;
    const char* const end = line.data() + line.size() - 1;
    const auto quoted = [&](std::string_view* text) {
      if (at >= end || *at != '"') return false;
      const char* begin = ++at;
      while (at < end && *at != '"' && *at != '\\') ++at;
      if (at >= end || *at != '"') return false;
      *text = std::string_view(begin, static_cast<size_t>(at - begin));
      ++at;
      return true;
    };
    while (at < end) {
      std::string_view key, text;
      if (!quoted(&key) || at >= end || *at++ != ':' || at >= end) return false;
      const std::string_view rest(at, static_cast<size_t>(end - at));
      double number = 0;
      if (*at == '"') {
        if (!quoted(&text)) return false;
      } else if (rest.starts_with("true") || rest.starts_with("null")) {
        if (key == "skipped") skipped = *at == 't';
        at += 4;
      } else if (rest.starts_with("false")) {
        at += 5;
      } else {
        const auto [next, error] = std::from_chars(at, end, number);
        if (error != std::errc()) return false;
        at = next;
        if (double* place = Find(key)) *place = number;
      }
      if (at < end && (*at++ != ',' || at == end)) return false;
    }
    return true;
  }
};

void RunHistory::GateCurves::Gate::Add(int64_t step, const ValueStats& stats) {
  mean.Add(step, stats.mean);
  min.Add(step, stats.min);
  max.Add(step, stats.max);
  below.Add(step, stats.below);
  above.Add(step, stats.above);
  beyond.Add(step, stats.beyond);
}

void RunHistory::AddStep(const Scanned& s) {
  const int64_t step = static_cast<int64_t>(s.step);
  last_step = step;
  if (std::isfinite(s.tokens)) tokens = static_cast<int64_t>(std::clamp(s.tokens, 0.0, 9e18));
  if (std::isfinite(s.wall_seconds)) wall_seconds = s.wall_seconds;
  last_loss = s.loss;
  loss.Add(step, s.loss);
  grad_norm.Add(step, s.grad_norm);
  lr.Add(step, s.lr);
  seconds.Add(step, s.seconds);
  // The first step of a history has nothing before it to take its own tokens from.
  const int64_t own_tokens = tokens_before_ >= 0 && tokens > tokens_before_ ? tokens - tokens_before_
                             : step == 1                                    ? tokens
                                                                            : 0;
  step_tokens.Add(step, static_cast<double>(own_tokens));
  tokens_before_ = tokens;
  // A sum since the process started: less than before means a new process.
  const double wait = std::isfinite(s.data_wait) ? s.data_wait : 0;
  data_wait.Add(step, wait >= data_wait_before_ ? wait - data_wait_before_ : wait);
  data_wait_before_ = wait;
  communication.Add(step, std::isfinite(s.communication) ? s.communication : 0);
  checkpoint_stall.Add(step, std::isfinite(s.checkpoint) ? s.checkpoint : 0);
  if (std::isfinite(s.seconds)) {
    recent_step_seconds =
        recent_step_seconds == 0 ? s.seconds : recent_step_seconds + 0.05 * (s.seconds - recent_step_seconds);
  }
  if (s.skipped) skipped.Add(step);
  if (std::isfinite(s.memory)) memory.Add(step, s.memory);
  if (std::isfinite(s.flops)) flops.Add(step, s.flops);
  if (std::isfinite(s.mfu)) mfu.Add(step, s.mfu);
}

void RunHistory::AddLine(std::string_view line) {
  ++num_lines;
  Scanned scanned;
  if (line.starts_with("{\"step\":") && scanned.ScanFlat(line) && scanned.valid()) return AddStep(scanned);

  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    ++num_not_understood;
    return;
  }
  if (json.contains("step")) {
    scanned = {};
    for (const auto& [key, value] : json.items()) {
      double* place = scanned.Find(key);
      if (place != nullptr && value.is_number()) *place = value.get<double>();
    }
    scanned.skipped = json.value("skipped", Json()) == true;
    if (!scanned.valid()) {
      ++num_not_understood;
      return;
    }
    AddStep(scanned);
    const Json* timings = ObjectIn(json, "ranks");
    if (timings == nullptr) return;
    ranks = {.num_steps = CountIn(*timings, "num_steps"),
             .num_ranks = CountIn(*timings, "num_ranks"),
             .min_seconds = NumberIn(*timings, "min_seconds"),
             .median_seconds = NumberIn(*timings, "median_seconds"),
             .max_seconds = NumberIn(*timings, "max_seconds"),
             .worst = {},
             .chronic = {},
             .crowded_hosts = {}};
    if (const Json* hosts = ListIn(*timings, "crowded_hosts")) {
      for (const Json& host : *hosts) {
        if (host.is_string() && ranks.crowded_hosts.size() < 3) {
          ranks.crowded_hosts.push_back(host.get<std::string>().substr(0, 200));
        }
      }
    }
    ranks_step = last_step;
    rank_min.Add(last_step, ranks.min_seconds);
    rank_median.Add(last_step, ranks.median_seconds);
    rank_max.Add(last_step, ranks.max_seconds);
    if (const Json* worst = ListIn(*timings, "worst")) {
      for (const Json& rank : *worst) {
        if (rank.is_object() && ranks.worst.size() < 3) ranks.worst.push_back(RankIn(rank));
      }
    }
    if (const Json* slow = ListIn(*timings, "chronic")) {
      for (const Json& entry : *slow) {
        if (!entry.is_object()) continue;
        const RankTimings::Rank rank = RankIn(entry);
        if (chronic.size() >= kMaxNewest && chronic.count(rank.rank) == 0) continue;
        const auto [place, is_new] = chronic.try_emplace(
            rank.rank, Chronic{.first_step = last_step, .rank = rank.rank, .host = rank.host});
        place->second.last_step = last_step;
        place->second.percent_over = std::max(place->second.percent_over, rank.percent_over);
        if (ranks.chronic.size() < kMaxNewest) ranks.chronic.push_back(rank);
      }
    }
    return;
  }
  if (const Json* e = ObjectIn(json, "evaluation")) {
    const int64_t step = CountIn(*e, "step");
    last_validation_step = step;
    last_validation = NumberIn(*e, "loss");
    last_accuracy = NumberIn(*e, "accuracy");
    last_bits_per_byte = NumberIn(*e, "bits_per_byte");
    validation.Add(step, last_validation);
    accuracy.Add(step, last_accuracy);
    if (const double entropy = NumberIn(*e, "source_entropy"); entropy > 0) source_entropy = entropy;
    if (const Json* list = ListIn(*e, "accuracy_by_length")) {
      by_length.clear();
      for (const Json& b : *list) {
        if (!b.is_object() || by_length.size() >= kMaxNewest) continue;
        by_length.push_back({.from = CountIn(b, "length_from"),
                             .to = CountIn(b, "length_to"),
                             .count = CountIn(b, "count"),
                             .accuracy = NumberIn(b, "accuracy")});
      }
    }
  } else if (const Json* sample = ObjectIn(json, "sample")) {
    samples.Add(
        {.step = CountIn(*sample, "step"), .text = TextIn(*sample, "text").substr(0, kMaxSampleBytes)});
  } else if (const Json* c = ObjectIn(json, "checkpoint")) {
    const CheckpointMetrics checkpoint = {.step = CountIn(*c, "step"),
                                          .outcome = TextIn(*c, "outcome").substr(0, 100),
                                          .seconds = NumberIn(*c, "seconds"),
                                          .seconds_stalled = NumberIn(*c, "seconds_stalled"),
                                          .num_bytes = CountIn(*c, "bytes"),
                                          .message = TextIn(*c, "message").substr(0, kMaxSampleBytes)};
    if (checkpoint_outcomes.size() < kMaxNewest) ++checkpoint_outcomes[checkpoint.outcome];
    if (checkpoint.outcome == "saved" || checkpoint.outcome == "found") {
      saved_steps.Add(checkpoint.step);
      last_saved = checkpoint;
      checkpoints.Add(checkpoint);
    } else {
      AddNewest(checkpoint, kMaxNewest, &failures);
    }
  } else if (const Json* h = ObjectIn(json, "health")) {
    const HealthEvent event = {.step = CountIn(*h, "step"),
                               .kind = TextIn(*h, "kind").substr(0, 100),
                               .message = TextIn(*h, "message").substr(0, kMaxSampleBytes)};
    if (health_kinds.size() < kMaxNewest || health_kinds.count(event.kind) > 0) ++health_kinds[event.kind];
    if (event.kind == "spike") spikes.Add(event.step);
    if (event.kind == "rollback") rollbacks.Add(event.step);
    AddNewest(event, kMaxNewest, &health);
  } else if (const Json* g = ObjectIn(json, "gates")) {
    gates_step = CountIn(*g, "step");
    if (const Json* blocks = ListIn(*g, "blocks")) {
      for (size_t i = 0; i < std::min(blocks->size(), kMaxBlocks); ++i) {
        const Json& block = (*blocks)[i];
        if (!block.is_object()) continue;
        if (gates.size() <= i) gates.resize(i + 1);
        gates[i].block = CountIn(block, "block");
        gates[i].slstm = TextIn(block, "cell") == "sLSTM";
        gates[i].input.Add(gates_step, StatsIn(block, "input"));
        gates[i].forget.Add(gates_step, StatsIn(block, "forget"));
      }
    }
    const ValueStats logits = StatsIn(*g, "logits"), sums = StatsIn(*g, "log_sum_exp");
    logits_max.Add(gates_step, logits.max);
    logits_rms.Add(gates_step, logits.rms);
    log_sum_exp.Add(gates_step, sums.mean);
  }
}

absl::Status MetricsTail::Read() {
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ENOENT) {
      history_ = RunHistory();
      device_ = inode_ = 0;
      offset_ = 0;
      in_long_line_ = false;
      return absl::OkStatus();
    }
    return absl::UnavailableError(
        absl::StrCat("cannot open ", path_, ": ", std::generic_category().message(errno)));
  }
  struct stat info {};
  absl::Status status = absl::OkStatus();
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    status = absl::InvalidArgumentError(
        absl::StrCat(path_, " is not a regular file; move away what stands there"));
  } else if (info.st_dev != device_ || info.st_ino != inode_ || info.st_size < offset_) {
    history_ = RunHistory();
    device_ = info.st_dev;
    inode_ = info.st_ino;
    offset_ = 0;
    in_long_line_ = false;
  }
  std::string buffer;
  constexpr size_t kChunk = 1 << 18;
  while (status.ok()) {
    const size_t had = buffer.size();
    buffer.resize(had + kChunk);
    const ssize_t n = pread(fd, buffer.data() + had, kChunk, offset_ + static_cast<int64_t>(had));
    if (n < 0 && errno == EINTR) {
      buffer.resize(had);
      continue;
    }
    if (n < 0) {
      status = absl::UnavailableError(
          absl::StrCat("cannot read ", path_, ": ", std::generic_category().message(errno)));
    }
    buffer.resize(had + static_cast<size_t>(std::max<ssize_t>(n, 0)));
    size_t begin = 0;
    for (size_t newline; (newline = buffer.find('\n', begin)) != std::string::npos; begin = newline + 1) {
      const std::string_view line = std::string_view(buffer).substr(begin, newline - begin);
      history_.AddLine(std::exchange(in_long_line_, false) ? std::string_view() : line);
    }
    buffer.erase(0, begin);
    offset_ += static_cast<int64_t>(begin);
    if (n <= 0) break;
    if (in_long_line_ || static_cast<int64_t>(buffer.size()) > kMaxLineBytes) {
      in_long_line_ = true;
      offset_ += static_cast<int64_t>(buffer.size());
      buffer.clear();
    }
  }
  close(fd);
  return status;
}
}  // namespace carousel
