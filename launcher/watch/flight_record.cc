#include "launcher/watch/flight_record.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace carousel {
namespace {
using Json = nlohmann::json;
constexpr int kMaxRanks = 1 << 20;
constexpr int64_t kVersion = 1;

bool IsPairwise(CollectiveOp op) {
  return op == CollectiveOp::kSend || op == CollectiveOp::kRecv || op == CollectiveOp::kSendRecv;
}

Json ToObject(const FlightRecord::Group& group) {
  Json calls = Json::array();
  for (const FlightRecord::Call& c : group.calls) {
    calls.push_back({{"sequence", c.sequence},
                     {"step", c.step},
                     {"what", c.what},
                     {"site", c.site},
                     {"seconds", c.seconds},
                     {"in_progress", c.in_progress},
                     {"peers", c.peers}});
  }
  return {{"name", group.name}, {"members", group.members}, {"num_calls", group.num_calls}, {"calls", calls}};
}

// Reads fields and remembers whether one was missing or of another type.
class Reader {
 public:
  explicit Reader(const Json& object) : object_(object) { ok_ = object.is_object(); }
  bool ok() const { return ok_; }
  const Json& Get(const char* name) {
    static const Json kNone;
    if (!ok_ || !object_.contains(name)) ok_ = false;
    return ok_ ? object_.at(name) : kNone;
  }
  int64_t Int(const char* name, int64_t least, int64_t most = INT64_MAX) {
    const Json& value = Get(name);
    ok_ = ok_ && value.is_number_integer();
    const int64_t number = ok_ ? value.get<int64_t>() : 0;
    ok_ = ok_ && number >= least && number <= most;
    return number;
  }
  double Number(const char* name) {
    const Json& value = Get(name);
    ok_ = ok_ && value.is_number();
    return ok_ ? value.get<double>() : 0;
  }
  bool Bool(const char* name) {
    const Json& value = Get(name);
    ok_ = ok_ && value.is_boolean();
    return ok_ && value.get<bool>();
  }
  std::string Text(const char* name) {
    const Json& value = Get(name);
    ok_ = ok_ && value.is_string();
    return ok_ ? value.get<std::string>() : "";
  }
  std::vector<int> Ranks(const char* name, int size) {
    std::vector<int> ranks;
    const Json& value = Get(name);
    ok_ = ok_ && value.is_array();
    for (size_t i = 0; ok_ && i < value.size(); ++i) {
      ok_ = value[i].is_number_integer() && value[i].get<int64_t>() >= 0 && value[i].get<int64_t>() < size;
      if (ok_) ranks.push_back(value[i].get<int>());
    }
    return ranks;
  }

 private:
  const Json& object_;
  bool ok_;
};

bool ParseGroup(const Json& object, int size, FlightRecord::Group* group) {
  Reader reader(object);
  group->name = reader.Text("name");
  group->members = reader.Ranks("members", size);
  group->num_calls = reader.Int("num_calls", 0);
  const Json& calls = reader.Get("calls");
  if (!reader.ok() || !calls.is_array()) return false;
  for (const Json& call : calls) {
    Reader fields(call);
    FlightRecord::Call c;
    c.sequence = fields.Int("sequence", 0);
    c.step = fields.Int("step", -1);
    c.what = fields.Text("what");
    c.site = fields.Text("site");
    c.seconds = fields.Number("seconds");
    c.in_progress = fields.Bool("in_progress");
    c.peers = fields.Ranks("peers", size);
    if (!fields.ok()) return false;
    group->calls.push_back(std::move(c));
  }
  return true;
}
}  // namespace

FlightRecord::Group RecordGroup(const FlightRecorder& recorder, const std::string& name,
                                const std::vector<int>& members) {
  const double now =
      std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  FlightRecord::Group group{.name = name, .members = members, .num_calls = 0, .calls = {}};
  const std::vector<FlightRecorder::Entry> entries = recorder.Entries();
  const size_t kept = static_cast<size_t>(FlightRecord::kMaxCalls);
  for (size_t i = entries.size() > kept ? entries.size() - kept : 0; i < entries.size(); ++i) {
    const FlightRecorder::Entry& e = entries[i];
    FlightRecord::Call call{.sequence = e.sequence,
                            .step = e.step,
                            .what = Describe(e.call),
                            .site = e.site.ToString(),
                            .seconds = (e.in_progress() ? now : e.end_seconds) - e.start_seconds,
                            .in_progress = e.in_progress(),
                            .peers = {}};
    if (IsPairwise(e.call.op)) {
      for (const int peer : {e.call.peer, e.call.source}) {
        if (peer >= 0 && peer < static_cast<int>(members.size())) {
          call.peers.push_back(members[static_cast<size_t>(peer)]);
        }
      }
    }
    group.num_calls = e.sequence + 1;
    group.calls.push_back(std::move(call));
  }
  return group;
}

std::string ToJson(const FlightRecord& record) {
  Json groups = Json::array();
  for (const FlightRecord::Group& group : record.groups) groups.push_back(ToObject(group));
  const Json object = {{"flight_record", kVersion},
                       {"rank", record.rank},
                       {"size", record.size},
                       {"host", record.host},
                       {"hosts", record.hosts},
                       {"section", record.section},
                       {"ended_because", record.ended_because},
                       {"idle_seconds", record.idle_seconds},
                       {"limit_seconds", record.limit_seconds},
                       {"step", record.step},
                       {"waits_in", record.waits_in},
                       {"waits_for", record.waits_for},
                       {"groups", groups}};
  return object.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<FlightRecord> ParseFlightRecord(const std::string& text) {
  const Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  Reader reader(object);
  FlightRecord record;
  reader.Int("flight_record", kVersion, kVersion);
  record.size = static_cast<int>(reader.Int("size", 1, kMaxRanks));
  record.rank = static_cast<int>(reader.Int("rank", 0, record.size - 1));
  record.host = reader.Text("host");
  record.section = reader.Text("section");
  // Records of older programs do not have it.
  if (reader.ok() && object.contains("ended_because")) record.ended_because = reader.Text("ended_because");
  record.idle_seconds = reader.Number("idle_seconds");
  record.limit_seconds = reader.Number("limit_seconds");
  record.step = reader.Int("step", -1);
  record.waits_in = reader.Text("waits_in");
  record.waits_for = reader.Ranks("waits_for", record.size);
  const Json& hosts = reader.Get("hosts");
  const Json& groups = reader.Get("groups");
  bool ok = reader.ok() && hosts.is_array() && groups.is_array();
  for (size_t i = 0; ok && i < hosts.size(); ++i) {
    ok = hosts[i].is_string();
    if (ok) record.hosts.push_back(hosts[i].get<std::string>());
  }
  ok = ok && (record.hosts.empty() || record.hosts.size() == static_cast<size_t>(record.size));
  for (size_t i = 0; ok && i < groups.size(); ++i) {
    ok = ParseGroup(groups[i], record.size, &record.groups.emplace_back());
  }
  if (!ok) return absl::InvalidArgumentError("this is no flight record");
  return record;
}

std::string Describe(const FlightRecord& record, int64_t max_calls) {
  std::string text =
      absl::StrFormat("rank %d of %d on %s: %s", record.rank, record.size, record.host, record.section);
  if (record.step >= 0) absl::StrAppend(&text, " of step ", record.step);
  absl::StrAppendFormat(&text, ", no progress for %.1f s, the limit is %.4g s\n", record.idle_seconds,
                        record.limit_seconds);
  if (!record.ended_because.empty()) absl::StrAppend(&text, "ended because: ", record.ended_because, "\n");
  if (!record.waits_for.empty()) {
    absl::StrAppend(&text, "waits in ", record.waits_in, " for ranks");
    for (const int rank : record.waits_for) absl::StrAppend(&text, " ", rank);
    absl::StrAppend(&text, "\n");
  }
  for (const FlightRecord::Group& group : record.groups) {
    if (group.num_calls == 0) continue;
    absl::StrAppend(&text, "last calls on '", group.name, "' (", group.members.size(), " ranks, ",
                    group.num_calls, " calls so far):\n");
    const size_t kept = static_cast<size_t>(std::max<int64_t>(max_calls, 1));
    for (size_t i = group.calls.size() > kept ? group.calls.size() - kept : 0; i < group.calls.size(); ++i) {
      const FlightRecord::Call& c = group.calls[i];
      absl::StrAppend(&text, "  #", c.sequence, c.step >= 0 ? absl::StrCat(" step ", c.step) : "", " ",
                      c.what, " at ", c.site,
                      c.in_progress ? absl::StrFormat(" IN PROGRESS for %.1f s\n", c.seconds)
                                    : absl::StrFormat(" %.3f ms\n", 1e3 * c.seconds));
    }
  }
  return text;
}

std::string FlightRecordPath(const std::string& dir, int rank, const std::string& extension) {
  return absl::StrFormat("%s/rank-%05d.%s", dir, rank, extension);
}
}  // namespace carousel
