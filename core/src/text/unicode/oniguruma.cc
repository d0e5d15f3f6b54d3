#include "text/unicode/oniguruma.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

// Oniguruma's sets, as parts of a character class.
constexpr const char* kSpace = R"(\x{9}-\x{d} \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr const char* kNoSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr const char* kWordInClass = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr const char* kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";  // alone, \w is a table of its own up to U+00FF

constexpr size_t kNowhere = static_cast<size_t>(-1);
constexpr uint32_t kMostRepeats = 1000;
constexpr size_t kDeepest = 100;  // groups within groups

// General categories by their names without spaces, hyphens and underscores.
struct Category {
  const char *name, *code;
};
constexpr std::array<Category, 74> kCategories = {{
    {"l", "L"}, {"letter", "L"}, {"lu", "Lu"}, {"uppercaseletter", "Lu"}, {"ll", "Ll"}, {"lowercaseletter", "Ll"}, {"lt", "Lt"},
    {"titlecaseletter", "Lt"}, {"lm", "Lm"}, {"modifierletter", "Lm"}, {"lo", "Lo"}, {"otherletter", "Lo"}, {"m", "M"}, {"mark", "M"}, {"mn", "Mn"},
    {"nonspacingmark", "Mn"}, {"mc", "Mc"}, {"spacingmark", "Mc"}, {"me", "Me"}, {"enclosingmark", "Me"}, {"n", "N"}, {"number", "N"}, {"nd", "Nd"},
    {"decimalnumber", "Nd"}, {"digit", "Nd"}, {"nl", "Nl"}, {"letternumber", "Nl"}, {"no", "No"}, {"othernumber", "No"}, {"p", "P"},
    {"punctuation", "P"}, {"pc", "Pc"}, {"connectorpunctuation", "Pc"}, {"pd", "Pd"}, {"dashpunctuation", "Pd"}, {"ps", "Ps"},
    {"openpunctuation", "Ps"}, {"pe", "Pe"}, {"closepunctuation", "Pe"}, {"pi", "Pi"}, {"initialpunctuation", "Pi"}, {"pf", "Pf"},
    {"finalpunctuation", "Pf"}, {"po", "Po"}, {"otherpunctuation", "Po"}, {"s", "S"}, {"symbol", "S"}, {"sm", "Sm"}, {"mathsymbol", "Sm"},
    {"sc", "Sc"}, {"currencysymbol", "Sc"}, {"sk", "Sk"}, {"modifiersymbol", "Sk"}, {"so", "So"}, {"othersymbol", "So"}, {"z", "Z"},
    {"separator", "Z"}, {"zs", "Zs"}, {"spaceseparator", "Zs"}, {"zl", "Zl"}, {"lineseparator", "Zl"}, {"zp", "Zp"}, {"paragraphseparator", "Zp"},
    {"c", "C"}, {"other", "C"}, {"cc", "Cc"}, {"control", "Cc"}, {"cf", "Cf"}, {"format", "Cf"}, {"cn", "Cn"}, {"unassigned", "Cn"}, {"co", "Co"},
    {"privateuse", "Co"}, {"alphabetic", "Alphabetic"},
}};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string Run() {
    while (at_ < in_.size()) Next();
    if (!groups_.empty()) Refuse("a group that does not end");
    return std::move(out_);
  }

 private:
  struct Group {
    size_t start;       // in `out_`
    bool is_assertion;  // look-ahead or look-behind, which is not repeated
    bool ignores_case;  // outside of the group
  };

  [[noreturn]] void Refuse(const std::string& what) const {
    throw Unsupported("the pattern \"" + std::string(in_.substr(0, 200)) + "\" with " + what, "one that is known to mean the same to PCRE2");
  }

  bool Ahead(std::string_view text) const { return in_.substr(at_, text.size()) == text; }

  bool Take(std::string_view text) {
    if (!Ahead(text)) return false;
    at_ += text.size();
    return true;
  }

  void Atom(std::string_view text) {
    atom_ = out_.size();
    out_ += text;
  }

  void Anchor(std::string_view text) {
    out_ += text;
    atom_ = kNowhere;
  }

  static std::string Literal(uint32_t character) {
    if (character < 0x80 && std::isalnum(static_cast<int>(character))) return std::string(1, static_cast<char>(character));
    char text[16];
    std::snprintf(text, sizeof text, "\\x{%x}", static_cast<unsigned>(character));
    return text;
  }

  void Next() {
    const char c = in_[at_];
    switch (c) {
      case '\\': ++at_; return Escape();
      case '[': ++at_; return Class();
      case '(': ++at_; return Open();
      case ')': ++at_; return Close();
      case '|': ++at_; return Anchor("|");
      case '^': ++at_; return Anchor("^");
      case '$': ++at_; return Anchor("$");
      case '.': ++at_; return Atom(".");
      case '*':
      case '+':
      case '?': {
        ++at_;
        std::string text(1, c);
        if (Take("?")) text += '?';
        else if (Take("+")) text += '+';
        return Quantifier(text);
      }
      case '{':
        if (Interval()) return;
        break;
      default: break;
    }
    Atom(Literal(NextCharacter(in_, at_)));
  }

  void Quantifier(const std::string& text) {
    if (atom_ == kNowhere) Refuse("nothing to repeat");
    if (repeated_ == out_.size()) {  // another quantifier ends here: this one repeats what that one makes
      out_.insert(atom_, "(?:");
      out_ += ')';
    }
    out_ += text;
    repeated_ = out_.size();
  }

  bool Number(size_t& at, uint32_t& value) const {
    const size_t begin = at;
    value = 0;
    for (; at < in_.size() && in_[at] >= '0' && in_[at] <= '9'; ++at) {
      value = value * 10 + static_cast<uint32_t>(in_[at] - '0');
      if (value > kMostRepeats) Refuse("more than 1000 repetitions");
    }
    return at > begin;
  }

  // {n}, {n,}, {,m} or {n,m}; other braces are characters.
  bool Interval() {
    size_t at = at_ + 1;
    uint32_t least = 0, most = 0;
    const bool has_least = Number(at, least);
    bool has_most = false, comma = false;
    if (at < in_.size() && in_[at] == ',') {
      comma = true;
      ++at;
      has_most = Number(at, most);
    }
    if (at >= in_.size() || in_[at] != '}' || (!has_least && !has_most)) return false;
    at_ = at + 1;
    if (has_most && most < least) Refuse("a range of repetitions that ends before it begins");
    std::string text = "{" + std::to_string(least);
    if (comma) text += "," + (has_most ? std::to_string(most) : std::string());
    text += '}';
    if (Ahead("?")) {
      if (!comma) Refuse("{n}?");
      ++at_;
      text += '?';
    }
    Quantifier(text);  // a + after it repeats the whole, which PCRE2 would take for possessive
    return true;
  }

  void Open() {
    if (groups_.size() >= kDeepest) Refuse("groups that nest too deeply");
    Group group{out_.size(), false, ignores_case_};
    if (!Ahead("?")) {
      out_ += "(?:";
    } else if (Take("?:")) {
      out_ += "(?:";
    } else if (Take("?>")) {
      out_ += "(?>";
    } else if (Ahead("?=") || Ahead("?!") || Ahead("?<=") || Ahead("?<!")) {
      const size_t length = in_[at_ + 1] == '<' ? 3 : 2;
      out_ += "(" + std::string(in_.substr(at_, length));
      at_ += length;
      group.is_assertion = true;
    } else if (Take("?i:")) {
      out_ += "(?i:";
      ignores_case_ = true;
    } else if (Take("?-i:")) {
      out_ += "(?-i:";
      ignores_case_ = false;
    } else if (at_ == 1 && Take("?i)")) {
      ignores_case_ = true;
      return Anchor("(?i)");
    } else {
      Refuse("a group of a kind that is not known");
    }
    groups_.push_back(group);
    atom_ = kNowhere;
  }

  void Close() {
    if (groups_.empty()) Refuse("a ) without a (");
    const Group group = groups_.back();
    groups_.pop_back();
    out_ += ')';
    atom_ = group.is_assertion ? kNowhere : group.start;
    ignores_case_ = group.ignores_case;
  }

  void Escape() {
    if (at_ >= in_.size()) Refuse("a backslash at its end");
    const std::string word = std::string("[") + kWord + "]";
    switch (in_[at_]) {
      case 's': ++at_; return Atom(std::string("[") + kSpace + "]");
      case 'S': ++at_; return Atom(std::string("[^") + kSpace + "]");
      case 'w': ++at_; return Atom(word);
      case 'W': ++at_; return Atom(std::string("[^") + kWord + "]");
      case 'd': ++at_; return Atom(R"(\p{Nd})");
      case 'D': ++at_; return Atom(R"(\P{Nd})");
      case 'h': ++at_; return Atom("[0-9A-Fa-f]");
      case 'H': ++at_; return Atom("[^0-9A-Fa-f]");
      case 'A': ++at_; return Anchor("\\A");
      case 'z': ++at_; return Anchor("\\z");
      case 'Z': ++at_; return Anchor("\\Z");
      case 'b': ++at_; return Anchor("(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))");
      case 'B': ++at_; return Anchor("(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))");
      case 'p':
      case 'P': return Atom(Property());
      default: return Atom(Literal(EscapedCharacter()));
    }
  }

  // The character that the rest of an escape sequence names.
  uint32_t EscapedCharacter() {
    const char c = in_[at_];
    switch (c) {
      case 'n': ++at_; return '\n';
      case 'r': ++at_; return '\r';
      case 't': ++at_; return '\t';
      case 'f': ++at_; return '\f';
      case 'v': ++at_; return '\v';
      case 'a': ++at_; return '\a';
      case 'e': ++at_; return 0x1B;
      case 'x': {
        ++at_;
        if (Take("{")) {
          const uint32_t value = Hex(1, 6);
          if (!Take("}")) Refuse("\\x{ without a }");
          return value;
        }
        const uint32_t value = Hex(2, 2);
        if (value >= 0x80) Refuse("a single byte of a character");
        return value;
      }
      case 'u': ++at_; return Hex(4, 4);
      default: break;
    }
    if (std::isalnum(static_cast<unsigned char>(c))) Refuse(std::string("\\") + c);
    return NextCharacter(in_, at_);
  }

  uint32_t Hex(size_t least, size_t most) {
    uint32_t value = 0;
    size_t digits = 0;
    for (; digits < most && at_ < in_.size() && std::isxdigit(static_cast<unsigned char>(in_[at_])); ++digits, ++at_) {
      const char c = in_[at_];
      value = value * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (digits < least || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) Refuse("a character number that is none");
    return value;
  }

  // \p{Name}, \P{Name} or \p{^Name}, of which `p` is next.
  std::string Property() {
    bool negated = in_[at_++] == 'P';
    if (!Take("{")) Refuse("\\p without a {");
    if (Take("^")) negated = !negated;
    const size_t end = in_.find('}', at_);
    if (end == std::string_view::npos || end == at_ || end - at_ > 40) Refuse("a property that is not known");
    const std::string_view name = in_.substr(at_, end - at_);
    at_ = end + 1;
    std::string plain;
    for (char c : name) {
      if (std::isalpha(static_cast<unsigned char>(c))) plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      else if (c != ' ' && c != '_' && c != '-') Refuse("a property that is not known");
    }
    const auto found = std::find_if(kCategories.begin(), kCategories.end(), [&](const Category& category) { return plain == category.name; });
    std::string code;
    if (found != kCategories.end()) {
      code = found->code;
      if (ignores_case_ && code.size() == 2 && code[0] == 'L') Refuse("\\p{" + code + "} where case is ignored");
    } else {
      code = "sc:" + plain;  // PCRE2 refuses what is no script
    }
    return std::string(negated ? "\\P{" : "\\p{") + code + "}";
  }

  // One item of a character class. `character` is set if it is a single one.
  std::string Item(bool& single, uint32_t& character) {
    single = false;
    const char c = in_[at_];
    if (c == '[') Refuse("a character class in another");
    if (Ahead("&&")) Refuse("&&");
    if (c != '\\') {
      single = true;
      character = NextCharacter(in_, at_);
      return Literal(character);
    }
    ++at_;
    if (at_ >= in_.size()) Refuse("a backslash at its end");
    switch (in_[at_]) {
      case 's': ++at_; return kSpace;
      case 'S': ++at_; return kNoSpace;
      case 'w': ++at_; return kWordInClass;
      case 'd': ++at_; return R"(\p{Nd})";
      case 'D': ++at_; return R"(\P{Nd})";
      case 'h': ++at_; return "0-9A-Fa-f";
      case 'p':
      case 'P': return Property();
      case 'b':
        ++at_;
        single = true;
        character = '\b';
        return Literal(character);
      default:
        single = true;
        character = EscapedCharacter();
        return Literal(character);
    }
  }

  void Class() {
    std::string text = "[";
    if (Take("^")) text += '^';
    if (at_ < in_.size() && in_[at_] == ']') Refuse("a character class that begins with ]");
    bool any = false;
    for (;;) {
      if (at_ >= in_.size()) Refuse("a character class that does not end");
      if (Take("]")) break;
      bool single = false;
      uint32_t first = 0;
      text += Item(single, first);
      any = true;
      if (!Ahead("-") || at_ + 1 >= in_.size() || in_[at_ + 1] == ']') continue;
      if (!single) Refuse("a range that begins with a set");
      ++at_;
      uint32_t last = 0;
      const std::string end = Item(single, last);
      if (!single || last < first) Refuse("a range that ends before it begins");
      text += "-" + end;
    }
    if (!any) Refuse("an empty character class");
    Atom(text + "]");
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = kNowhere;      // where the last atom begins in `out_`; a quantifier repeats it
  size_t repeated_ = kNowhere;  // end of `out_` after the last quantifier
  bool ignores_case_ = false;
  std::vector<Group> groups_;
};

}  // namespace

std::string FromOniguruma(std::string_view pattern) { return Translator(pattern).Run(); }

}  // namespace sol_rt
