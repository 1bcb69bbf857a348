package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fakeKubectl lists the pods of the file $PODS. The log of a pod is two lines; it ends when the test removes the file of
// its name, as a log ends with its container.
const fakeKubectl = `#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
*" get pods "*) cat "$PODS" ;;
*" logs "*)
	pod=$6
	echo "[pod/$pod] {\"msg\":\"http\",\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}"
	echo "[pod/$pod] {\"msg\":\"other\",\"trace_id\":\"00000000000000000000000000000001\"}"
	: >"$PODS.$pod"
	while [ -e "$PODS.$pod" ]; do /bin/sleep 0.05; done
	;;
esac
`

// logsRun is a run of logs.sh with a fake kubectl, which polls without a pause.
type logsRun struct {
	cmd        *exec.Cmd
	output     *screen
	pods, made string // files
}

// screen collects output.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func startLogs(t *testing.T, pods string, environ ...string) *logsRun {
	t.Helper()
	folder := t.TempDir()
	for name, text := range map[string]string{"kubectl": fakeKubectl, "sleep": "#!/bin/sh\nexec /bin/sleep 0.05\n"} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(text), 0o700))
	}
	r := &logsRun{output: &screen{}, pods: filepath.Join(folder, "pods"), made: filepath.Join(folder, "calls")}
	r.setPods(t, pods)
	r.cmd = exec.CommandContext(t.Context(), "bash", "logs.sh")
	r.cmd.Env = append(os.Environ(), append([]string{
		"PATH=" + folder + ":" + os.Getenv("PATH"), "PODS=" + r.pods, "CALLS=" + r.made, "KIND_CLUSTER=tandem", "SERVICE=", "TRACE=",
	}, environ...)...)
	r.cmd.Stdout, r.cmd.Stderr = r.output, r.output
	r.cmd.WaitDelay = 10 * time.Second
	require.NoError(t, r.cmd.Start())
	return r
}

// setPods replaces the list of pods at once.
func (r *logsRun) setPods(t *testing.T, pods string) {
	t.Helper()
	require.NoError(t, os.WriteFile(r.pods+".new", []byte(pods), 0o600))
	require.NoError(t, os.Rename(r.pods+".new", r.pods))
}

func (r *logsRun) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(r.output.String(), text) }, 20*time.Second, 20*time.Millisecond, "%q is not in the output", text)
}

// stop ends the script, and requires that nothing which it started goes on.
func (r *logsRun) stop(t *testing.T) (output, calls string) {
	t.Helper()
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
	require.NotErrorIs(t, r.cmd.Wait(), exec.ErrWaitDelay, "a log is still followed, or marked")
	made, err := os.ReadFile(r.made)
	require.NoError(t, err)
	return r.output.String(), string(made)
}

// The logs of all pods are followed, each container once: also those of a pod that starts later, and of a container after
// its restart.
func TestLogs_FollowsNewContainers(t *testing.T) {
	r := startLogs(t, "tandem service-a-1 containerd://a1\ntandem-b service-b-1 containerd://b1\ntandem-b service-b-2 \n")
	r.await(t, "[pod/service-a-1]")
	r.await(t, "[pod/service-b-1]")
	require.NoError(t, os.Remove(r.pods+".service-b-1")) // its container has ended
	r.setPods(t, "tandem service-a-1 containerd://a1\ntandem-b service-b-1 containerd://b1-again\ntandem-b service-b-2 containerd://b2\n")
	r.await(t, "[pod/service-b-2]")
	require.Eventually(t, func() bool { return strings.Count(r.output.String(), `[pod/service-b-1] {"msg":"http"`) == 2 }, 20*time.Second, 20*time.Millisecond)
	output, calls := r.stop(t)
	assert.Equal(t, 1, strings.Count(output, `[pod/service-a-1] {"msg":"http"`), output)
	assert.Contains(t, calls, "--context kind-tandem get pods --all-namespaces --selector app.kubernetes.io/part-of=tandem --output")
	assert.Contains(t, calls, "--context kind-tandem --namespace tandem logs service-a-1 --prefix --tail 20 --follow\n")
	assert.Contains(t, calls, "--context kind-tandem --namespace tandem-b logs service-b-2 --prefix --tail -1 --follow\n")
	assert.Equal(t, 4, strings.Count(calls, " logs "), calls)
}

// TRACE marks the lines of a trace, and SERVICE selects the pods of one service. Without a terminal, there are no colors.
func TestLogs_MarksTrace(t *testing.T) {
	r := startLogs(t, "tandem service-b-1 containerd://b1\n", "TRACE=4bf92f3577b3", "SERVICE=service-b")
	r.await(t, "other")
	output, calls := r.stop(t)
	assert.Contains(t, output, "> [pod/service-b-1] {\"msg\":\"http\",\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}\n")
	assert.Contains(t, output, "  [pod/service-b-1] {\"msg\":\"other\",\"trace_id\":\"00000000000000000000000000000001\"}\n")
	assert.NotContains(t, output, "\x1b")
	assert.Contains(t, calls, "--selector app.kubernetes.io/part-of=tandem,app.kubernetes.io/name=service-b --output")
}

func TestLogs_RejectsInvalidSettings(t *testing.T) {
	for _, tc := range []struct{ setting, want string }{
		{setting: "SERVICE=service-z", want: "logs: there is no service service-z"},
		{setting: "TRACE=4BF92F35", want: `logs: TRACE="4BF92F35": want a trace id`},
		{setting: "TRACE=4bf92f3", want: `logs: TRACE="4bf92f3": want a trace id`},
	} {
		r := startLogs(t, "", tc.setting)
		require.Error(t, r.cmd.Wait())
		assert.Contains(t, r.output.String(), tc.want)
	}
}
