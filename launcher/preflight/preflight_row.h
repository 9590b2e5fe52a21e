// What a check before a run found, for people and for machines. A check is a row: its name, how it ended,
// what was found (with numbers) and, unless all is well, what to do about it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/exit_code.h"

namespace carousel {

enum class PreflightStatus : uint8_t {
  kOk,
  kNote,     // worth knowing, nothing is wrong
  kWarning,  // the run works, but slower or with less safety than it could
  kFailed,   // the run cannot work, or would compute wrong numbers
  kSkipped   // could not be asked; the finding says why
};
const char* NameOf(PreflightStatus status);  // "ok", "note", "warning", "failed", "skipped"

struct PreflightRow {
  std::string check;  // "open files"
  PreflightStatus status = PreflightStatus::kOk;
  std::string finding = {};
  std::string fix = {};                 // one or more sentences; empty for kOk and kSkipped
  std::vector<int> ranks = {};          // whom it is about, ascending; empty: all of them
  std::vector<std::string> hosts = {};  // of those ranks, each once
  int exit_code = kExitPreflight;       // of a run that this row keeps from starting
};

// What one rank says about one check.
struct RankFinding {
  PreflightStatus status = PreflightStatus::kOk;
  std::string finding = {};
  std::string fix = {};
};

// Rows of one check from what each rank says (findings[i] is said by rank i on hosts[i]): ranks that say the
// same become one row, in the order of their first ranks. Rows that all ranks share name no ranks.
std::vector<PreflightRow> FoldRanks(const std::string& check, const std::vector<RankFinding>& findings,
                                    const std::vector<std::string>& hosts);

// {0, 1, 2, 5} -> "0-2, 5".
std::string RanksText(const std::vector<int>& ranks);
// "rank 3 (node2)", "ranks 0-7 (node1)", "ranks 0-7, 9 (node1, node2, and 3 more)"; for messages.
std::string RanksAndHosts(const std::vector<int>& ranks, const std::vector<std::string>& hosts);
// Each name once, in the order of the first.
std::vector<std::string> Distinct(const std::vector<std::string>& names);

// The worst status, where kFailed > kWarning > kNote > kOk = kSkipped.
PreflightStatus WorstOf(const std::vector<PreflightRow>& rows);
// "21 checks: 18 ok, 1 note, 1 warning, 1 failed".
std::string CountsText(const std::vector<PreflightRow>& rows);

struct PreflightTableOptions {
  int columns = 110;           // text is wrapped to this width
  bool only_problems = false;  // rows below kWarning are left out
};
// The table for people; every line ends with a line break.
std::string FormatPreflightTable(const std::vector<PreflightRow>& rows, const PreflightTableOptions& options);
}  // namespace carousel
