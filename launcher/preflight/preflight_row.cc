#include "launcher/preflight/preflight_row.h"

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace carousel {
namespace {
constexpr size_t kMaxHostsShown = 8;

int Severity(PreflightStatus status) {
  switch (status) {
    case PreflightStatus::kOk:
    case PreflightStatus::kSkipped:
      return 0;
    case PreflightStatus::kNote:
      return 1;
    case PreflightStatus::kWarning:
      return 2;
    case PreflightStatus::kFailed:
      return 3;
  }
  return 3;
}

// Appends `text` at the column where `*out`'s last line ends, wrapped at `columns`, with `indent` spaces
// before the lines that follow.
void AppendWrapped(std::string* out, const std::string& text, size_t indent, size_t columns) {
  size_t column = out->size() - (out->rfind('\n') == std::string::npos ? 0 : out->rfind('\n') + 1);
  bool first_paragraph = true;
  for (const absl::string_view paragraph : absl::StrSplit(text, '\n')) {
    if (!first_paragraph) {
      absl::StrAppend(out, "\n", std::string(indent, ' '));
      column = indent;
    }
    first_paragraph = false;
    bool first_word = true;
    for (const absl::string_view word : absl::StrSplit(paragraph, ' ', absl::SkipEmpty())) {
      if (!first_word && column + 1 + word.size() > columns) {
        absl::StrAppend(out, "\n", std::string(indent, ' '));
        column = indent;
        first_word = true;
      }
      if (!first_word) {
        out->push_back(' ');
        ++column;
      }
      // What came from outside must not command a terminal.
      for (const char c : word) out->push_back(absl::ascii_iscntrl(static_cast<unsigned char>(c)) ? '?' : c);
      column += word.size();
      first_word = false;
    }
  }
  out->push_back('\n');
}
}  // namespace

const char* NameOf(PreflightStatus status) {
  switch (status) {
    case PreflightStatus::kOk:
      return "ok";
    case PreflightStatus::kNote:
      return "note";
    case PreflightStatus::kWarning:
      return "warning";
    case PreflightStatus::kFailed:
      return "failed";
    case PreflightStatus::kSkipped:
      return "skipped";
  }
  return "?";
}

std::vector<std::string> Distinct(const std::vector<std::string>& names) {
  std::vector<std::string> distinct;
  for (const std::string& name : names) {
    if (std::find(distinct.begin(), distinct.end(), name) == distinct.end()) distinct.push_back(name);
  }
  return distinct;
}

std::vector<PreflightRow> FoldRanks(const std::string& check, const std::vector<RankFinding>& findings,
                                    const std::vector<std::string>& hosts) {
  std::vector<PreflightRow> rows;
  for (size_t rank = 0; rank < findings.size(); ++rank) {
    const RankFinding& mine = findings[rank];
    auto row = std::find_if(rows.begin(), rows.end(), [&](const PreflightRow& known) {
      return known.status == mine.status && known.finding == mine.finding && known.fix == mine.fix;
    });
    if (row == rows.end()) {
      row =
          rows.insert(row, {.check = check, .status = mine.status, .finding = mine.finding, .fix = mine.fix});
    }
    row->ranks.push_back(static_cast<int>(rank));
    row->hosts.push_back(hosts[rank]);
  }
  for (PreflightRow& row : rows) {
    row.hosts = Distinct(row.hosts);
    if (row.ranks.size() == findings.size()) row.ranks.clear(), row.hosts.clear();
  }
  return rows;
}

std::string RanksText(const std::vector<int>& ranks) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < ranks.size();) {
    size_t end = begin;
    while (end + 1 < ranks.size() && ranks[end + 1] == ranks[end] + 1) ++end;
    parts.push_back(end == begin ? absl::StrCat(ranks[begin])
                                 : absl::StrCat(ranks[begin], end == begin + 1 ? ", " : "-", ranks[end]));
    begin = end + 1;
  }
  return absl::StrJoin(parts, ", ");
}

std::string RanksAndHosts(const std::vector<int>& ranks, const std::vector<std::string>& hosts) {
  const std::vector<std::string> names = Distinct(hosts);
  std::string text = absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", RanksText(ranks));
  if (names.empty()) return text;
  const size_t shown = std::min(names.size(), kMaxHostsShown);
  absl::StrAppend(
      &text, " (",
      absl::StrJoin(names.begin(),
                    names.begin() + static_cast<std::vector<std::string>::difference_type>(shown), ", "));
  if (names.size() > shown) absl::StrAppend(&text, ", and ", names.size() - shown, " more");
  return text + ")";
}

PreflightStatus WorstOf(const std::vector<PreflightRow>& rows) {
  PreflightStatus worst = PreflightStatus::kOk;
  for (const PreflightRow& row : rows) {
    if (Severity(row.status) > Severity(worst)) worst = row.status;
  }
  return worst;
}

std::string CountsText(const std::vector<PreflightRow>& rows) {
  // Rows of one check are one check, as bad as its worst row.
  std::vector<std::string> names;
  for (const PreflightRow& row : rows) names.push_back(row.check);
  std::map<PreflightStatus, int> counts;
  const std::vector<std::string> checks = Distinct(names);
  for (const std::string& check : checks) {
    bool skipped = true;
    PreflightStatus worst = PreflightStatus::kOk;
    for (const PreflightRow& row : rows) {
      if (row.check != check) continue;
      skipped &= row.status == PreflightStatus::kSkipped;
      if (Severity(row.status) > Severity(worst)) worst = row.status;
    }
    ++counts[skipped ? PreflightStatus::kSkipped : worst];
  }
  std::vector<std::string> parts;
  for (const auto& [status, singular, plural] :
       std::initializer_list<std::tuple<PreflightStatus, const char*, const char*>>{
           {PreflightStatus::kOk, "ok", "ok"},
           {PreflightStatus::kNote, "note", "notes"},
           {PreflightStatus::kWarning, "warning", "warnings"},
           {PreflightStatus::kFailed, "failed", "failed"},
           {PreflightStatus::kSkipped, "skipped", "skipped"}}) {
    const int count = counts[status];
    if (count > 0) parts.push_back(absl::StrCat(count, " ", count == 1 ? singular : plural));
  }
  return absl::StrCat(checks.size(),
                      checks.size() == 1 ? " check: " : " checks: ", absl::StrJoin(parts, ", "));
}

std::string FormatPreflightTable(const std::vector<PreflightRow>& rows,
                                 const PreflightTableOptions& options) {
  size_t check_columns = 0;
  for (const PreflightRow& row : rows) check_columns = std::max(check_columns, row.check.size());
  constexpr size_t kStatusColumns = 9;  // "skipped" and two spaces
  const size_t text_column = 2 + kStatusColumns + check_columns + 2;
  std::string table;
  for (const PreflightRow& row : rows) {
    if (options.only_problems && Severity(row.status) < Severity(PreflightStatus::kWarning)) continue;
    std::string status = NameOf(row.status);
    // What must be seen is in capitals.
    if (row.status == PreflightStatus::kFailed) status = absl::AsciiStrToUpper(status);
    std::string line = absl::StrCat("  ", status, std::string(kStatusColumns - status.size(), ' '), row.check,
                                    std::string(text_column - 2 - kStatusColumns - row.check.size(), ' '));
    const std::string whom = row.ranks.empty() ? "" : absl::StrCat(RanksAndHosts(row.ranks, row.hosts), ": ");
    const size_t columns = static_cast<size_t>(std::max(options.columns, 60));
    AppendWrapped(&line, whom + row.finding, text_column, columns);
    if (!row.fix.empty()) {
      std::string fix = absl::StrCat(std::string(text_column, ' '), "fix: ");
      AppendWrapped(&fix, row.fix, text_column + 5, columns);
      line += fix;
    }
    table += line;
  }
  return table;
}
}  // namespace carousel
