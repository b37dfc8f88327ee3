// Program health prints what GitOps tools say about the health of objects: kstatus, Flux with healthCheckExprs, and Argo CD with
// a health check in Lua. It reads one JSON object per line and prints one line for each.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

const (
	longestLine = 16 << 20
	luaTimeout  = time.Second // as in Argo CD
)

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type verdicts struct {
	Kstatus verdict `json:"kstatus"`
	Flux    verdict `json:"flux"`
	ArgoCD  verdict `json:"argoCD"`
}

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: health LUA-FILE CUSTOM-HEALTH-CHECK-FILE <OBJECTS"))
	}
	script, err := os.ReadFile(os.Args[1])
	fail(err)
	text, err := os.ReadFile(os.Args[2])
	fail(err)
	var check kustomize.CustomHealthCheck
	fail(yaml.UnmarshalStrict(text, &check))
	evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
	fail(err)

	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, longestLine)
	printed := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		object := &unstructured.Unstructured{}
		fail(object.UnmarshalJSON(lines.Bytes()))
		if object.GetAPIVersion() != check.APIVersion || object.GetKind() != check.Kind {
			fail(fmt.Errorf("%s must be a %s of %s", object.GetName(), check.Kind, check.APIVersion))
		}
		computed, err := status.Compute(object)
		fail(err)
		// Flux waits until its timeout if an expression cannot be evaluated. A test should see why.
		flux, err := evaluator.Evaluate(context.Background(), object)
		fail(err)
		argo, err := health(object, string(script))
		fail(err)
		fail(printed.Encode(verdicts{
			Kstatus: verdict{computed.Status.String(), computed.Message},
			Flux:    verdict{flux.Status.String(), flux.Message},
			ArgoCD:  argo,
		}))
	}
	fail(lines.Err())
}

// health runs the script as util/lua of Argo CD does: with the same interpreter and libraries (except for its `os`, which has
// only the time), the object in the global `obj`, and a timeout. Argo CD reports any other status as Unknown.
func health(object *unstructured.Unstructured, script string) (verdict, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage,
		lua.BaseLibName: lua.OpenBase,
		lua.TabLibName:  lua.OpenTable,
	} {
		call := lua.P{Fn: state.NewFunction(open), NRet: 0, Protect: true}
		if err := state.CallByParam(call, lua.LString(name)); err != nil {
			return verdict{}, err
		}
	}
	limited, cancel := context.WithTimeout(context.Background(), luaTimeout)
	defer cancel()
	state.SetContext(limited)
	state.SetGlobal("obj", value(state, object.Object))
	if err := state.DoString(script); err != nil {
		return verdict{}, err
	}
	returned, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return verdict{}, fmt.Errorf("the Lua script must return a table, not %s", state.Get(-1).Type())
	}
	found := verdict{lua.LVAsString(returned.RawGetString("status")), lua.LVAsString(returned.RawGetString("message"))}
	switch found.Status {
	case "Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown":
		return found, nil
	}
	return verdict{}, fmt.Errorf("the Lua script returned the status %q, which Argo CD rejects", found.Status)
}

func value(state *lua.LState, decoded any) lua.LValue {
	switch converted := decoded.(type) {
	case bool:
		return lua.LBool(converted)
	case float64:
		return lua.LNumber(converted)
	case int64:
		return lua.LNumber(converted)
	case string:
		return lua.LString(converted)
	case []any:
		table := state.CreateTable(len(converted), 0)
		for _, item := range converted {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(converted))
		for key, item := range converted {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
