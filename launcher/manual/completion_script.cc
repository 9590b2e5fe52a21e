#include "launcher/manual/completion_script.h"

#include <functional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace carousel {
namespace {

std::string LastWord(const std::string& path) { return path.substr(path.rfind(' ') + 1); }

// In single quotes for a shell.
std::string Quoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

void ForEach(const CommandOutline& command, const std::function<void(const CommandOutline&)>& visit) {
  visit(command);
  for (const CommandOutline& sub : command.commands) ForEach(sub, visit);
}

// The tables, in words that bash and zsh share: from the path of a command to what it knows.
std::string Tables(const CommandOutline& program) {
  std::string commands, options, values, passes;
  ForEach(program, [&](const CommandOutline& command) {
    std::vector<std::string> names;
    for (const CommandOutline& sub : command.commands) names.push_back(LastWord(sub.path));
    if (!names.empty()) {
      absl::StrAppend(&commands, "    ", Quoted(command.path),
                      ") commands=", Quoted(absl::StrJoin(names, " ")), " ;;\n");
    }
    names.clear();
    for (const OptionOutline& option : command.options) {
      for (const std::string& name : option.names) {
        if (name.substr(0, 2) == "--") names.push_back(name);
        if (option.value.empty()) continue;
        absl::StrAppend(&values, "    ", Quoted(absl::StrCat(command.path, " ", name)), ") takes_value=1",
                        option.choices.empty()
                            ? ""
                            : absl::StrCat(" values=", Quoted(absl::StrJoin(option.choices, " "))),
                        " ;;\n");
      }
    }
    absl::StrAppend(&options, "    ", Quoted(command.path), ") options=", Quoted(absl::StrJoin(names, " ")),
                    " ;;\n");
    if (command.takes_command) absl::StrAppend(&passes, "    ", Quoted(command.path), ") passes_on=1 ;;\n");
  });
  // Sets commands, options and passes_on for a path, values and takes_value for a path and an option.
  const std::string name = LastWord(program.path);
  return absl::StrCat("_", name, "_tables() {\n",
                      "  commands='' options='' values='' takes_value='' passes_on=''\n",
                      "  case \"$1\" in\n", commands, "  esac\n", "  case \"$1\" in\n", options, "  esac\n",
                      "  case \"$1\" in\n", passes, "    *) ;;\n", "  esac\n", "  case \"$1 $2\" in\n",
                      values, "    *) ;;\n", "  esac\n", "}\n");
}

// Which command the words before the cursor have arrived at: sets `at`.
std::string Walk(const std::string& name) {
  return absl::StrReplaceAll(R"(_NAME_walk() {
  local word skip=''
  at='NAME'
  for word in "$@"; do
    if [ -n "$skip" ]; then skip=''; continue; fi
    case "$word" in
      -*)
        _NAME_tables "$at" "$word"
        skip=$takes_value
        continue ;;
    esac
    _NAME_tables "$at" ''
    case " $commands " in
      *" $word "*) at="$at $word"; continue ;;
    esac
    if [ -n "$passes_on" ]; then
      _NAME_tables 'NAME' ''
      case " $commands " in
        *" $word "*) at="NAME $word" ;;
      esac
    fi
  done
}
)",
                             {{"NAME", name}});
}
}  // namespace

std::string BashCompletion(const CommandOutline& program) {
  const std::string name = LastWord(program.path);
  return absl::StrCat("# bash completion of ", name, "\n", Tables(program), Walk(name),
                      absl::StrReplaceAll(R"(_NAME() {
  local at commands options values takes_value passes_on
  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
  _NAME_walk "${COMP_WORDS[@]:1:COMP_CWORD-1}"
  # bash takes "--option=value" apart at the "=".
  if [ "$current" = '=' ]; then
    current=''
  elif [ "$before" = '=' ] && [ "$COMP_CWORD" -ge 2 ]; then
    before=${COMP_WORDS[COMP_CWORD-2]}
  fi
  _NAME_tables "$at" "$before"
  local words=''
  if [ -n "$takes_value" ]; then
    words=$values
  elif [ "${current#-}" != "$current" ]; then
    words=$options
  else
    words=$commands
    if [ -n "$passes_on" ]; then _NAME_tables 'NAME' ''; words=$commands; fi
  fi
  local word
  COMPREPLY=()
  while read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$words" -- "$current")
}
complete -o default -o bashdefault -F _NAME NAME
)",
                                          {{"NAME", name}}));
}

std::string ZshCompletion(const CommandOutline& program) {
  const std::string name = LastWord(program.path);
  return absl::StrCat("#compdef ", name, "\n", "# zsh completion of ", name, "\n", Tables(program),
                      Walk(name),
                      absl::StrReplaceAll(R"(_NAME() {
  local at commands options values takes_value passes_on offered=''
  _NAME_walk "${(@)words[2,CURRENT-1]}"
  _NAME_tables "$at" "${words[CURRENT-1]}"
  if [ -n "$takes_value" ]; then
    offered=$values
  elif [[ "${words[CURRENT]}" == -* ]]; then
    offered=$options
  else
    offered=$commands
    if [ -n "$passes_on" ]; then _NAME_tables 'NAME' ''; offered=$commands; fi
  fi
  if [ -n "$offered" ]; then
    compadd -- ${=offered}
  else
    _files
  fi
}
if [ "${funcstack[1]-}" = _NAME ]; then _NAME "$@"; else compdef _NAME NAME; fi
)",
                                          {{"NAME", name}}));
}
}  // namespace carousel
