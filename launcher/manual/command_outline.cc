#include "launcher/manual/command_outline.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace carousel {
namespace {

OptionOutline OutlineOf(const CLI::Option& option, bool is_argument) {
  OptionOutline outline;
  outline.help = option.get_description();
  outline.required = option.get_required();
  if (!is_argument) {
    for (const std::string& name : option.get_lnames()) outline.names.push_back("--" + name);
    for (const std::string& name : option.get_snames()) outline.names.push_back("-" + name);
  }
  if (option.get_items_expected_max() == 0) return outline;  // a flag
  // "NAME:{auto,nccl}" or "NUMBER:POSITIVE": what it is, then what a check demands.
  const std::string type = option.get_type_name();
  outline.value = type.substr(0, type.find(':'));
  if (is_argument) outline.value = option.get_name(/*positional=*/true);
  const size_t open = type.find('{'), close = type.rfind('}');
  if (open != std::string::npos && close != std::string::npos && open < close) {
    for (const absl::string_view choice : absl::StrSplit(type.substr(open + 1, close - open - 1), ',')) {
      outline.choices.emplace_back(absl::StripAsciiWhitespace(choice));
    }
    if (open == 0) outline.value = "VALUE";
  }
  return outline;
}

CommandOutline OutlineBelow(const CLI::App& app, const std::string& parents) {
  CommandOutline outline;
  outline.path = absl::StrCat(parents, parents.empty() ? "" : " ", app.get_name());
  outline.help = app.get_description();
  outline.footer = app.get_footer();
  outline.takes_command = app.get_prefix_command();
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;
    if (option->get_positional()) {
      outline.arguments.push_back(OutlineOf(*option, true));
    } else {
      outline.options.push_back(OutlineOf(*option, false));
    }
  }
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (command->get_name().empty() || command->get_group().empty()) continue;
    outline.commands.push_back(OutlineBelow(*command, outline.path));
  }
  return outline;
}
}  // namespace

CommandOutline OutlineOf(const CLI::App& app) { return OutlineBelow(app, ""); }
}  // namespace carousel
