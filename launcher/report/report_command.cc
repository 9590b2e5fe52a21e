// `carousel report`: draws the report of a run from what its directory holds.
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/commands.h"
#include "launcher/report/html_report.h"

namespace carousel {
namespace {

struct ReportOptions {
  std::string run_dir, out;
};

int RunReport(const ReportOptions& options) {
  const std::string out = options.out.empty() ? ReportPath(options.run_dir) : options.out;
  if (const absl::Status status = WriteReport(options.run_dir, out); !status.ok()) {
    const bool names_out = status.message().find(out) != std::string::npos;
    return ReportError(
        names_out && !absl::IsNotFound(status)
            ? absl::Status(status.code(), absl::StrCat(status.message(), "; --out FILE writes it elsewhere"))
            : status);
  }
  absl::PrintF("%s\n", out);
  return kExitOk;
}
}  // namespace

CLI::App* AddReportCommand(CLI::App& app, std::function<int()>* run) {
  CLI::App* report =
      app.add_subcommand("report", "Draw the report of a run: one HTML file that needs nothing else");
  const auto options = std::make_shared<ReportOptions>();
  report->add_option("--run_dir", options->run_dir, "The run; it may still be going on")
      ->required()
      ->type_name("DIR");
  report->add_option("--out", options->out, "Where to write it; default: report.html in the run's directory")
      ->type_name("FILE");
  report->footer(
      "Training keeps report.html up to date by itself (log.report). This command makes it again, for "
      "example with a\n"
      "newer carousel, or somewhere else. It reads metrics.jsonl, starts.jsonl, config.textproto and "
      "attempts/*/exit.json.\n\n"
      "Examples:\n"
      "  carousel report --run_dir runs/demo\n"
      "  carousel report --run_dir /shared/runs/7b --out 7b.html");
  report->callback([options, run] { *run = [options] { return RunReport(*options); }; });
  return report;
}
}  // namespace carousel
