// The manual page and the completion scripts, of a command line made here; the program's own are checked by
// tests/install_test.sh.
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <string>

#include "launcher/manual/command_outline.h"
#include "launcher/manual/completion_script.h"
#include "launcher/manual/man_page.h"

namespace carousel {
namespace {

class Manual : public testing::Test {
 protected:
  Manual() {
    app_.footer("Examples:\n  wheel turn\n\nFiles of a run:\n  .wheel   it's a dot\n");
    CLI::App* const turn = app_.add_subcommand("turn", "Turn it");
    turn->add_option("--way,-w", way_, "Which way; say -1 never")
        ->check(CLI::IsMember({"left", "right"}))
        ->type_name("WAY");
    turn->add_option("--file", file_, "'Tis a file\n.SH not a heading")->type_name("FILE")->required();
    turn->add_flag("--fast", fast_, "Faster");
    turn->add_flag("--secret", secret_, "Hidden")->group("");
    CLI::App* const parts = app_.add_subcommand("parts", "Its parts");
    parts->add_subcommand("spoke", "One of many")->add_option("NAME", name_, "Which one")->required();
    app_.add_subcommand("with", "Do it with others")->prefix_command();
  }
  CLI::App app_{"wheel: a thing that turns.", "wheel"};
  std::string way_, file_, name_;
  bool fast_ = false, secret_ = false;
};

const OptionOutline* Find(const CommandOutline& command, const std::string& name) {
  for (const OptionOutline& option : command.options) {
    for (const std::string& its : option.names) {
      if (its == name) return &option;
    }
  }
  return nullptr;
}

TEST_F(Manual, OutlineHoldsWhatTheCommandLineOffers) {
  const CommandOutline wheel = OutlineOf(app_);
  EXPECT_EQ(wheel.path, "wheel");
  ASSERT_EQ(wheel.commands.size(), 3u);
  const CommandOutline& turn = wheel.commands[0];
  EXPECT_EQ(turn.path, "wheel turn");
  const OptionOutline* way = Find(turn, "--way");
  ASSERT_NE(way, nullptr);
  EXPECT_EQ(way, Find(turn, "-w"));
  EXPECT_EQ(way->value, "WAY");
  EXPECT_EQ(way->choices, (std::vector<std::string>{"left", "right"}));
  EXPECT_FALSE(way->required);
  EXPECT_TRUE(Find(turn, "--file")->required);
  EXPECT_TRUE(Find(turn, "--file")->choices.empty());
  EXPECT_EQ(Find(turn, "--fast")->value, "");
  EXPECT_EQ(Find(turn, "--secret"), nullptr);
  EXPECT_FALSE(turn.takes_command);
  EXPECT_TRUE(wheel.commands[2].takes_command);
  const CommandOutline& spoke = wheel.commands[1].commands.at(0);
  EXPECT_EQ(spoke.path, "wheel parts spoke");
  ASSERT_EQ(spoke.arguments.size(), 1u);
  EXPECT_EQ(spoke.arguments[0].value, "NAME");
}

TEST_F(Manual, PageHasEveryCommandAndNoStrayRequests) {
  const std::string page = ManPage(OutlineOf(app_), "wheel 1.0");
  for (const char* const part :
       {".TH WHEEL 1 \"\" \"wheel 1.0\"", "wheel \\- a thing that turns.", ".SS \"wheel turn\"",
        ".SS \"wheel parts spoke\"",
        "\\fB\\-\\-way\\fR, \\fB\\-w\\fR \\fIWAY\\fR (left, right)\nWhich way; say \\-1 never",
        "\\fIFILE\\fR, required", ".SH \"Examples\"\n.nf\n  wheel turn\n.fi\n", ".SH \"Files of a run\"\n"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part << "\nis not in\n" << page;
  }
  EXPECT_EQ(page.find("Hidden"), std::string::npos);
  // A line of help that begins like a request of troff is text.
  EXPECT_NE(page.find("\n\\&'Tis a file\n\\&.SH not a heading\n"), std::string::npos) << page;
  EXPECT_EQ(page.find("\n.SH not"), std::string::npos);
}

TEST_F(Manual, CompletionKnowsCommandsOptionsAndValues) {
  for (const std::string& script : {BashCompletion(OutlineOf(app_)), ZshCompletion(OutlineOf(app_))}) {
    for (const char* const part :
         {"'wheel') commands='turn parts with'", "'wheel parts') commands='spoke'",
          "'wheel turn --way') takes_value=1 values='left right'", "'wheel turn -w') takes_value=1",
          "'wheel turn --file') takes_value=1 ;;", "'wheel with') passes_on=1"}) {
      EXPECT_NE(script.find(part), std::string::npos) << part << "\nis not in\n" << script;
    }
    EXPECT_EQ(script.find("--secret"), std::string::npos);
  }
}
}  // namespace
}  // namespace carousel
