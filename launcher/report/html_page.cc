#include "launcher/report/html_page.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "launcher/report/svg_chart.h"
#include "parallel/hmac_sha256.h"

namespace carousel {
namespace {

constexpr char kStyle[] = R"css(
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--dim:#667085;--line:#e4e7ec;
--grid:#eceff3;--c1:#2f6fde;--c2:#d9730d;--c3:#0f9d6e;--c4:#8b4fd9;--c5:#c83b6b;--c6:#6b7a90;
--ok:#0f9d6e;--warn:#d9930d;--bad:#d03434;--tint:#eef3fc}
@media (prefers-color-scheme:dark){:root{--bg:#0f1318;--card:#181e26;--ink:#e6eaf0;--dim:#94a0b0;
--line:#2a323d;--grid:#232b35;--c1:#6ea3ff;--c2:#f2a04e;--c3:#45c896;--c4:#b58cff;--c5:#f07aa2;--c6:#8f9db1;
--ok:#45c896;--warn:#f0b64a;--bad:#ff7070;--tint:#1d2836}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","DejaVu Sans",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1240px;margin:0 auto;padding:24px 20px 48px}
header{display:flex;flex-wrap:wrap;align-items:baseline;gap:4px 14px;margin-bottom:4px}
h1{font-size:22px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:15px;margin:30px 0 10px;letter-spacing:.01em}
h2 small{font-weight:400;color:var(--dim);margin-left:8px;font-size:13px}
.sub{color:var(--dim);overflow-wrap:anywhere}
.pill{display:inline-block;padding:1px 10px;border-radius:99px;font-size:12px;font-weight:600;
border:1px solid currentColor}
.pill.ok{color:var(--ok)}.pill.warn{color:var(--warn)}.pill.bad{color:var(--bad)}.pill.run{color:var(--c1)}
.bar{height:6px;border-radius:3px;background:var(--line);margin:14px 0 16px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--c1)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:10px}
.tile,figure,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:10px 12px;overflow:hidden}
.tile span{display:block;color:var(--dim);font-size:12px}
.tile b{font-size:20px;font-weight:650;white-space:nowrap}
.tile em{font-style:normal;color:var(--dim);font-size:12px;display:block;white-space:nowrap;overflow:hidden;
text-overflow:ellipsis}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:12px}
.wide{grid-column:1/-1}
.own{align-items:start}
@media (max-width:860px){.grid{grid-template-columns:minmax(0,1fr)}}
figure{margin:0;padding:12px 14px 8px;position:relative;min-width:0}
figcaption{display:flex;flex-wrap:wrap;gap:2px 8px;align-items:baseline;margin-bottom:4px}
figcaption b{font-weight:600}
.unit{color:var(--dim);font-size:12px}
.legend{margin-left:auto;color:var(--dim);font-size:12px}
.key{display:inline-block;width:14px;height:3px;border-radius:2px;margin:0 5px 3px 12px;background:currentColor}
.ramp{display:inline-flex;margin:0 6px;vertical-align:-1px}
.ramp i{width:9px;height:10px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11px;fill:var(--dim)}
.ty{text-anchor:end;dominant-baseline:central}.tx{text-anchor:middle}
.grid path,path{vector-effect:non-scaling-stroke}
path.grid{stroke:var(--grid);fill:none;stroke-width:1}
path.axis{stroke:var(--line);fill:none;stroke-width:1}
path.line{fill:none;stroke:currentColor;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
path.faint{fill:none;stroke:currentColor;stroke-width:1;opacity:.38}
path.band{fill:currentColor;stroke:none;opacity:.16}
circle{fill:currentColor}
path.ref{stroke:var(--dim);stroke-dasharray:5 4;fill:none;stroke-width:1}
text.reftext{text-anchor:end}
path.mark{fill:none;stroke-width:1.2}
path.mark.ok{stroke:var(--ok);stroke-width:2}
path.mark.bad{stroke:var(--bad);opacity:.75}
path.mark.warn{stroke:var(--warn);opacity:.75}
path.mark.start{stroke:var(--dim);stroke-dasharray:2 3}
path.mark.back{stroke:var(--bad);stroke-dasharray:6 3}
.key.ok{color:var(--ok)}.key.bad,.key.back{color:var(--bad)}.key.warn{color:var(--warn)}.key.start{color:var(--dim)}
path.cut{fill:var(--warn)}
.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.c6{color:var(--c6)}
.h0{fill:#30123b;background:#30123b}.h1{fill:#3f3994;background:#3f3994}.h2{fill:#455ed2;background:#455ed2}
.h3{fill:#3a87fd;background:#3a87fd}.h4{fill:#1bb5d5;background:#1bb5d5}.h5{fill:#24d3a4;background:#24d3a4}
.h6{fill:#62f168;background:#62f168}.h7{fill:#a9fb39;background:#a9fb39}.h8{fill:#dbe236;background:#dbe236}
.h9{fill:#fbb938;background:#fbb938}.h10{fill:#f2701c;background:#f2701c}.h11{fill:#b11901;background:#b11901}
.none{color:var(--dim);margin:18px 0 22px;text-align:center}
table{border-collapse:collapse;width:100%;font-size:13px}
th{color:var(--dim);font-weight:500;text-align:left;font-size:12px}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}
tr:last-child td{border-bottom:none}
td.n,th.n{text-align:right;white-space:nowrap}
.card{padding:10px 14px;overflow-x:auto}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0 0}
.sample{border-left:3px solid var(--c1);padding-left:12px;margin:12px 0}
.sample span{color:var(--dim);font-size:12px}
details>summary{cursor:pointer;color:var(--dim)}
details[open]>summary{margin-bottom:8px}
.conf{columns:2;column-gap:28px}
@media (max-width:860px){.conf{columns:1}}
.conf div{display:flex;gap:10px;justify-content:space-between;border-bottom:1px solid var(--line);
padding:2px 0;break-inside:avoid}
.conf div>*{overflow-wrap:anywhere}
.conf code:last-child{text-align:right}
.conf .set{background:var(--tint)}
.conf s{color:var(--dim);text-decoration:none;font-size:11.5px}
.tip{position:absolute;pointer-events:none;background:var(--ink);color:var(--card);border-radius:6px;
padding:4px 8px;font-size:12px;line-height:1.4;white-space:nowrap;z-index:2;opacity:.94}
.cross{stroke:var(--dim);stroke-width:1;vector-effect:non-scaling-stroke}
footer{color:var(--dim);margin-top:34px;font-size:12px}
)css";

// Reads the curves back from their paths: the numbers stand in the file once.
constexpr char kScript[] = R"js(
'use strict';
const pill=document.querySelector('.pill[data-drawn]');
const look=()=>{const late=Date.now()/1000-pill.dataset.drawn;
if(late<Math.max(120,4*pill.dataset.between))return;
pill.className='pill warn';pill.textContent='running when this was drawn, '+(late<7200?Math.round(late/60)+' minutes':
Math.round(late/3600)+' hours')+' ago'};
if(pill){look();setInterval(look,10000)}
const short=v=>{const a=Math.abs(v);return a===0?'0':a<1e-3||a>=1e6?v.toExponential(3):a>=1000?
Math.round(v).toLocaleString('en-US'):v.toPrecision(4)};
for(const svg of document.querySelectorAll('svg.chart')){
const [x0,x1,a0,a1]=svg.dataset.x.split(' ').map(Number),[y0,y1,b0,b1]=svg.dataset.y.split(' ').map(Number);
const lines=[...svg.querySelectorAll('path.line')].map(p=>({name:p.dataset.name||'',
points:p.getAttribute('d').slice(1).split(/[ML]/).map(s=>s.split(' ').map(Number))}));
const toX=a=>x0+(x1-x0)*(a-a0)/(a1-a0);
const toY=b=>{const part=(b-b0)/(b1-b0);return svg.dataset.log?y0*Math.pow(y1/y0,part):y0+(y1-y0)*part};
const figure=svg.parentNode,tip=document.createElement('div');
tip.className='tip';tip.hidden=true;figure.append(tip);
const cross=document.createElementNS('http://www.w3.org/2000/svg','line');
cross.setAttribute('class','cross');cross.setAttribute('y1',b0);cross.setAttribute('y2',b1);
cross.style.display='none';svg.append(cross);
const hide=()=>{tip.hidden=true;cross.style.display='none'};
svg.addEventListener('mouseleave',hide);
svg.addEventListener('mousemove',event=>{
const box=svg.getBoundingClientRect(),scale=svg.viewBox.baseVal.width/box.width;
const at=(event.clientX-box.left)*scale;let near=null;
for(const line of lines)for(const p of line.points)if(near===null||Math.abs(p[0]-at)<Math.abs(near-at))near=p[0];
if(near===null)return hide();
tip.textContent='';const head=document.createElement('b');
head.textContent='step '+Math.round(toX(near)).toLocaleString('en-US');tip.append(head);
for(const line of lines){let best=null;
for(const p of line.points)if(best===null||Math.abs(p[0]-near)<Math.abs(best[0]-near))best=p;
if(best===null||Math.abs(best[0]-near)>12)continue;
const row=document.createElement('div');row.textContent=line.name+' '+short(toY(best[1]));tip.append(row)}
cross.style.display='';cross.setAttribute('x1',near);cross.setAttribute('x2',near);tip.hidden=false;
const left=box.left-figure.getBoundingClientRect().left+near/scale;
tip.style.left=(left>box.width*.7?left-tip.offsetWidth-10:left+10)+'px';
tip.style.top=(svg.offsetTop||36)+Math.max(0,event.clientY-box.top-10)+'px'})}
)js";

}  // namespace

std::string HtmlPage(const std::string& title, const std::string& body, int64_t refresh_seconds) {
  const Digest256 digest = Sha256(kScript);
  const std::string hash =
      absl::Base64Escape(absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'sha256-",
      hash, "'; img-src data:; base-uri 'none'; form-action 'none'\">\n",
      refresh_seconds > 0 ? absl::StrCat("<meta http-equiv=\"refresh\" content=\"", refresh_seconds, "\">\n")
                          : "",
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"referrer\" content=\"no-referrer\">\n"
      // The icon that browsers ask for otherwise.
      "<link rel=\"icon\" href=\"data:,\">\n<title>",
      EscapedHtml(title), "</title>\n<style>", kStyle, "</style></head>\n<body><main>\n", body,
      "</main>\n<script>", kScript, "</script></body></html>\n");
}
}  // namespace carousel
