#include "launcher/command_line.h"

#include <cstdio>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "configs/suggest.h"
#include "launcher/commands.h"

namespace carousel {
namespace {
constexpr size_t kColumns = 100;
constexpr size_t kNameColumns = 30;  // where descriptions begin

// "  name" padded, then the description wrapped into the rest of the line.
std::string Entry(const std::string& name, const std::string& description) {
  std::string text = absl::StrCat("  ", name);
  const std::string indent(kNameColumns, ' ');
  text += text.size() + 2 > kNameColumns ? "\n" + indent : std::string(kNameColumns - text.size(), ' ');
  bool first_line = true;
  for (const auto& paragraph : absl::StrSplit(description, '\n')) {
    if (!first_line) absl::StrAppend(&text, "\n", indent);
    first_line = false;
    size_t column = kNameColumns;
    for (const auto& word : absl::StrSplit(paragraph, ' ', absl::SkipEmpty())) {
      if (column > kNameColumns && column + 1 + word.size() > kColumns) {
        absl::StrAppend(&text, "\n", indent);
        column = kNameColumns;
      }
      if (column > kNameColumns) {
        text += ' ';
        ++column;
      }
      absl::StrAppend(&text, word);
      column += word.size();
    }
  }
  return text + "\n";
}

// The subcommand that the user had arrived at.
const CLI::App& Deepest(const CLI::App& app) {
  const CLI::App* current = &app;
  while (!current->get_subcommands().empty()) current = current->get_subcommands().front();
  return *current;
}

std::string FullName(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return parent == nullptr ? command.get_name() : absl::StrCat(FullName(*parent), " ", command.get_name());
}

std::vector<std::string> OptionNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> SubcommandNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::App* sub : command.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(sub->get_name());
  }
  return names;
}
}  // namespace

HelpFormatter::HelpFormatter() {
  column_width(kNameColumns);
  label("REQUIRED", "(required)");
}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  return Entry(make_option_name(option, is_positional) + make_option_opts(option), make_option_desc(option));
}

std::string HelpFormatter::make_subcommand(const CLI::App* command) const {
  return Entry(command->get_name(), command->get_description());
}

std::string ExplainParseError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = Deepest(app);
  std::string text = absl::StrCat(FullName(command), ": ");
  // Words that nobody took. An unknown subcommand leaves everything behind it, its name first.
  std::vector<std::string> unknown = command.remaining();
  if (unknown.empty()) unknown = app.remaining(true);
  const std::vector<std::string> subcommands = SubcommandNames(command);
  // A bad value of an option says more than what stands behind it.
  const std::string kind = error.get_name();
  const bool is_value = kind == "ValidationError" || kind == "ConversionError" || kind == "ArgumentMismatch";
  if (!unknown.empty() && !is_value) {
    const std::string word = unknown.front().substr(0, unknown.front().find('='));
    if (absl::StartsWith(word, "-")) {
      absl::StrAppend(&text, "no option ", word, DidYouMean(word, OptionNames(command)));
    } else if (!subcommands.empty()) {
      absl::StrAppend(&text, "no command \"", word, "\"", DidYouMean(word, subcommands));
    } else {
      absl::StrAppend(&text, "unexpected argument \"", unknown.front(), "\"");
    }
  } else {
    absl::StrAppend(&text, error.what());
    if (!subcommands.empty() && absl::StrContains(error.what(), "subcommand is required")) {
      text = absl::StrCat(FullName(command), ": say which: ", absl::StrJoin(subcommands, ", "));
    }
  }
  return absl::StrCat(text, "\nHelp: ", FullName(command), " --help\n");
}

int ReportError(const absl::Status& status) {
  std::fprintf(stderr, "carousel: %s\n", std::string(status.message()).c_str());
  return ExitCodeOf(status);
}

void AddConfigOptions(CLI::App& command, ConfigOptions* options) {
  command
      .add_option("--config", options->config,
                  "The run as a text file; fields and their defaults: configs/run.proto, examples: "
                  "configs/*.textproto")
      ->type_name("FILE");
  command
      .add_option("--set", options->sets,
                  "Change one field after the file was read, for example --set train.steps=500 or --set "
                  "data.train[0].path=PREFIX; may be given many times; an empty VALUE restores the default")
      ->type_name("FIELD=VALUE")
      ->allow_extra_args(false);
  command
      .add_option("--run_dir", options->run_dir,
                  "Directory of the run: checkpoints, metrics.jsonl and the config as it was resolved")
      ->type_name("DIR");
}
}  // namespace carousel
