package ai.solrt

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** Options in one expression: `generateOptions { budget(0.6).maxNewTokens(200) }`. */
inline fun generateOptions(set: GenerateOptions.Builder.() -> Unit): GenerateOptions = GenerateOptions.builder().apply(set).build()

/**
 * The tokens of one generation. It begins anew with every collector and runs in [Dispatchers.Default]; a token is computed when the collector is ready for
 * it, so that [SolSession.setBudget] acts on the next one. Cancelling the collector ends the generation within one decode step, and so does an exception in
 * it. The flow fails with a [SolException]; [SolSession.result] has the figures afterwards.
 */
fun SolSession.generateFlow(prompt: IntArray, options: GenerateOptions): Flow<SolToken> =
    channelFlow {
        val session = this@generateFlow
        session.start(prompt, options)
        val generation = session.generation()
        // Sees the cancellation while this coroutine's thread is inside a step. Unconfined: no thread must be free for it.
        val watcher = launch(Dispatchers.Unconfined) {
            try {
                awaitCancellation()
            } finally {
                if (session.generation() == generation) session.cancel()
            }
        }
        try {
            do {
                if (session.generation() != generation) throw SolException.Usage("another generation began on this session: use a session for each flow")
                val token = session.next()
                send(token)
            } while (!token.isLast)
        } catch (cancelled: SolException.Cancelled) {
            ensureActive() // where the collector was cancelled, that is what the flow ends with
            throw cancelled
        } finally {
            withContext(NonCancellable) { watcher.cancelAndJoin() }
            // The watcher's call must not end the next generation: `stop` takes it.
            try {
                if (session.generation() == generation) session.stop()
            } catch (_: SolException) {
            }
        }
    }.buffer(Channel.RENDEZVOUS).flowOn(Dispatchers.Default)
